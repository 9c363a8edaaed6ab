"""The seam between training and fine-tuning methods: what training needs from a method.

A new method is one new module that implements :class:`Method`, and one line in :mod:`sdtune.methods.registry`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sdtune.data.samples import Sample
from sdtune.launch.run_folder import Run
from sdtune.models.family import Family, Networks
from sdtune.settings import Job


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A parameter that training changes."""

    parameter: nn.Parameter
    """In float32."""
    learning_rate: float
    """Of the optimizer, before ``scale_lr`` and the learning-rate schedule."""
    share_of_steps: float = 1.0
    """It learns in this share of the steps, from the first on, and then keeps its value."""
    fixed_norm: bool = False
    """Its norm over the last dimension stays what it is at the start."""
    largest: float | None = None
    """Largest norm, over the last dimension, that a useful result can have; None: any finite one."""


class StartingPoints(ABC):
    """What learning may start from, for training to choose the best by its validation loss."""

    points: Sequence[str]
    """All of them, by name, in the same order on all ranks."""

    @abstractmethod
    def promising(self, count: int) -> list[str]:
        """At most ``count`` points that the gradients of the learned parameters promise the lowest losses for."""

    @abstractmethod
    def caption(self, caption: str, point: str) -> str:
        """A caption that gives, with nothing learned, what ``caption`` gives with learning at ``point``."""

    @abstractmethod
    def take(self, point: str) -> None:
        """Set the learned parameters to ``point``."""


class Method(ABC):
    """A fine-tuning method, applied to the networks of one job."""

    learned: Mapping[str, Learned]
    """All parameters that training changes, by name. The order is the same on all ranks."""
    starting_points: StartingPoints | None = None
    """What training chooses the start from; None: the learned parameters are at the start."""
    num_captions: int
    """How many captions a picture may be shown with; ``Sample.caption`` is less than this."""

    @classmethod
    @abstractmethod
    def check(cls, job: Job, family: Family) -> list[str]:
        """Check the job's settings for this method, without loading networks.

        Returns:
            Warnings for the user.

        Raises:
            BadInput: names the setting that is wrong, with the remedy.
        """

    @classmethod
    @abstractmethod
    def caption_problems(cls, job: Job, family: Family) -> list[str]:
        """What is wrong with the captions beside the pictures; told together with what is wrong with the pictures."""

    @classmethod
    @abstractmethod
    def example_prompts(cls, job: Job) -> list[str]:
        """Captions of training, as the networks take them, for calibration and comparison of an export."""

    @abstractmethod
    def __init__(self, job: Job, networks: Networks) -> None:
        """Add the parameters to ``networks``, which still compute the same as before."""

    @abstractmethod
    def caption(self, sample: Sample) -> str:
        """The caption of a training sample."""

    @abstractmethod
    def validation_caption(self, picture: int) -> str:
        """The caption that validation measures what is learned with, on a picture of this number."""

    @abstractmethod
    def reference_caption(self, description: str) -> str:
        """The caption that validation measures a user's ``description`` of the concept with, nothing learned."""

    @abstractmethod
    def expand_prompt(self, prompt: str) -> str:
        """A user's prompt as the networks need it to show the learned concept."""

    @abstractmethod
    def save(self, run: Run, facts: Mapping[str, Any]) -> list[Path]:
        """Write the learned parameters to the run folder, in the formats that other tools read.

        Args:
            run: the run folder.
            facts: the content of ``finished.json``.

        Returns:
            The files, of which ``finished.json`` keeps the SHA-256.
        """

    @abstractmethod
    def save_pipeline(self, run: Run, model: Path) -> None:
        """Write ``pipeline/`` of the run after :meth:`save`: a copy of the pipeline ``model`` that contains the learned
        concept; completely or not at all.
        """
