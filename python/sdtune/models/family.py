"""The seam between training and base models: what training and methods need from a model family.

A new family is one new module that implements :class:`Family` and :class:`Networks`, and one line in
:mod:`sdtune.models.registry`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from sdtune.data.pictures import View
from sdtune.errors import BadInput
from sdtune.models.folder import model_fingerprint, weight_files
from sdtune.models.footprint import Footprint, footprint
from sdtune.models.geometry import Geometry, read_geometry
from sdtune.settings import Job
from standalone.model_folder import model_problems, side_problem, size_multiple

ImageEncoder = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Pixels [b, 3, h, w] in [-1, 1] -> mean and log-variance of the VAE's posterior, each float32 [b, c, h, w]."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples to denoise."""

    latents: torch.Tensor
    """float32 [b, c, h, w], multiplied by the VAE's scaling factor."""
    noise: torch.Tensor
    """float32 [b, c, h, w], standard normal."""
    timesteps: torch.Tensor
    """int64 [b]."""
    captions: Sequence[str]
    """One caption for each sample."""
    views: Sequence[View]
    """How the picture of each sample was cropped and resized."""
    numbers: Sequence[int] | None = None
    """Numbers of the samples in the run, on which dropout depends; None: there is no dropout."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A text encoder of a pipeline, with its tokenizer. Methods may change both before the first caption is encoded."""

    model: nn.Module
    """Frozen, in evaluation mode."""
    tokenizer: Any
    """A tokenizer of transformers."""
    name_in_files: str
    """What other tools call its learned embeddings in their files."""
    adapter_prefix: str
    """How the names of its adapters begin in kohya's files."""


class Networks(ABC):
    """The frozen networks of a base model, as :meth:`Family.load` loads them."""

    geometry: Geometry
    """Geometry of the VAE."""
    num_timesteps: int
    """Length of the noise schedule: timesteps are 0 to ``num_timesteps - 1``."""
    text_encoders: Mapping[str, TextEncoder]
    """By the name of the encoder's subfolder in the pipeline."""

    kind_in_files: str
    """What kohya's scripts call such a base model in the files of its adapters, such as ``sd_v1``."""

    on_batch: list[Callable[[Batch | None], None]]
    """Called with each batch before its prediction, and with None before pictures are drawn."""
    denoiser: nn.Module
    """The denoising network, in evaluation mode. Methods may change it before the first sample."""
    denoiser_name: str
    """Its subfolder in the pipeline, such as ``unet``."""

    @abstractmethod
    def encode_captions(self, captions: Collection[str]) -> None:
        """Encode all captions that will be used, once and for all. The text encoders leave memory.

        For methods that leave the text encoders as they are.
        """

    @abstractmethod
    def denoising_losses(self, batch: Batch, snr_gamma: float | None = None) -> torch.Tensor:
        """Mean squared error of the prediction for each sample.

        Args:
            batch: b samples.
            snr_gamma: gamma of min-SNR weights; None for no weights.

        Returns:
            float32 [b], with gradients to the parameters that a method has added.
        """

    image_encoder_id: str
    """Fingerprint of the VAE's encoder, for posteriors that are kept."""

    @abstractmethod
    def load_image_encoder(self) -> ImageEncoder:
        """Load the VAE's encoder in float32. It leaves memory when the caller drops what this returns."""

    @abstractmethod
    def draw(self, prompt: str, seeds: Sequence[int], resolution: int, guidance_scale: float) -> list[Image.Image]:
        """Draw one picture of ``prompt`` for each seed, with the networks as they are now."""

    def describe(self) -> dict[str, Any]:
        """Choices that this host made for the networks, for the first line of ``metrics.jsonl``."""
        return {}


class Family(ABC):
    """A kind of base model."""

    name: ClassVar[str]
    """Short name, such as ``sd``."""
    pipeline_classes: ClassVar[tuple[str, ...]]
    """Classes in ``model_index.json`` that belong to this family."""
    weight_parts: ClassVar[tuple[str, ...]]
    """Subfolders of a pipeline that hold weights."""
    denoiser_name: ClassVar[str]
    """Subfolder of the denoising network."""
    other_parts: ClassVar[tuple[str, ...]]
    """Subfolders of a pipeline that have to exist besides."""

    def check(self, model: Path, sides: Mapping[str, int]) -> None:
        """Check a model folder, and that the model can work on pictures of these sizes.

        Args:
            model: folder of the pipeline.
            sides: {setting, such as ``data.resolution``: pixels}.

        Raises:
            BadInput: names everything that is wrong, with the remedy.
        """
        problems = [f"model.path: {model} {problem}" for problem in model_problems(model, installed=True)]
        if not problems:
            multiple = size_multiple(model)
            problems = [p for name, side in sides.items() if (p := side_problem(name, side, multiple))]
        if not problems:
            problems = [f"model.path: {model} {problem}" for problem in self.part_problems(model) if problem]
        if problems:
            raise BadInput("; ".join(problems))

    @abstractmethod
    def part_problems(self, model: Path) -> Iterable[str]:
        """What is wrong with the parts of a model whose files are right: made of their configurations, without weights.

        Args:
            model: folder of the pipeline.

        Returns:
            Each problem after the words "the model folder X"; empty texts are no problems.

        Raises:
            BadInput: a library does not take a file.
        """

    @abstractmethod
    def load_tokenizers(self, model: Path) -> dict[str, Any]:
        """Load the tokenizers only, by the name of their text encoder's subfolder."""

    @abstractmethod
    def load(self, job: Job) -> Networks:
        """Load the job's model, frozen, in the type and layout that training uses.

        Raises:
            BadInput: the cache of converted weights has no space left, or the job's software stack is not installed.
        """

    def geometry(self, model: Path) -> Geometry:
        """Geometry of the VAE in a model folder."""
        return read_geometry(model)

    def fingerprint(self, model: Path) -> str:
        """A hash of the model's weights."""
        return model_fingerprint(model, self.weight_parts)

    def footprint(self, model: Path, resolution: int, *, bf16: bool, adapted: bool) -> Footprint:
        """Memory that training takes at least, for square pictures of ``resolution`` pixels."""
        return footprint(model, resolution, bf16=bf16, adapted=adapted)

    def weight_bytes(self, model: Path) -> int:
        """Size of the model's weight files."""
        return sum(path.stat().st_size for path in weight_files(model, self.weight_parts))
