"""Settings of validation and early stopping."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sdtune.errors import BadInput
from sdtune.settings.bounds import GUIDANCE, STEPS, Between, Ge, Le
from sdtune.settings.fields import Flag, Settings, Variable


@dataclass(frozen=True, kw_only=True)
class ValidationArgs(Settings):
    """Validation: a loss that can be compared between steps and runs, and pictures of one prompt."""

    section: ClassVar[str] = "validation"
    prefix: ClassVar[str] = "training_validation_"

    steps: Annotated[int, Ge(0), STEPS, Flag("validation_steps")] = 25
    """Optimizer steps between validations; the first one is before training. 0: no validation."""
    triples: Annotated[int, Ge(1), Le(10_000), Flag("validation_triples")] = 64
    """Number of fixed (picture, timestep, noise) triples that the loss is computed on, shared out over the ranks."""
    reference_caption: str | None = None
    """A hand-written description of the concept, such as "yellow rabbit", whose loss the learned token is compared
    with. Unset: no comparison."""
    prompt: Annotated[str | None, Flag("validation_prompt")] = None
    """Generate pictures of this prompt before the first step and after the last one. Unset: no pictures."""
    prompt_steps: Annotated[int, Ge(0), STEPS, Flag("validation_prompt_steps")] = 0
    """Optimizer steps between such pictures during training; 0 generates none in between."""
    num_images: Annotated[int, Ge(1), Le(10_000), Flag("num_validation_images")] = 4
    """Number of pictures, always of the seeds 1 to this number, shared out over the ranks."""
    guidance_scale: Annotated[float, GUIDANCE, Flag("validation_guidance_scale")] = 7.5
    """Guidance scale of these pictures."""
    early_stopping: Annotated[Literal["plateau", "variance"], Variable(name="training_early_stopping")] = "plateau"
    """When early_stopping_patience stops a run: plateau, after so many successive validations without an improvement;
    or variance, when the losses of so many successive validations vary little beside all of them (arXiv 2302.04841)."""
    early_stopping_patience: Annotated[int, Ge(0), STEPS, Variable(name="training_early_stopping_patience")] = 0
    """Number of successive validations by which early_stopping judges; 0 never stops early."""
    early_stopping_min_delta: Annotated[
        float, Between(0, 1, below=True), Variable(name="training_early_stopping_min_delta")
    ] = 0.0
    """For plateau: how far a loss has to be below the best one to count as an improvement, as a share of that."""
    early_stopping_variance: Annotated[float, Between(0, 1), Variable(name="training_early_stopping_variance")] = 0.15
    """For variance: the run stops when the variance of the last losses is below this share of that of all losses."""

    def __post_init__(self) -> None:
        """Check the bounds, and that early stopping has validations to judge by."""
        super().__post_init__()
        if self.early_stopping_patience > 0 and self.steps == 0:
            raise BadInput(
                "validation.early_stopping_patience: without validation (validation.steps: 0) nothing tells when to "
                "stop"
            )
        if self.early_stopping == "plateau":
            return
        if self.early_stopping_patience < 3:
            raise BadInput(
                f"validation.early_stopping_patience: the variance of {self.early_stopping_patience} losses says "
                f"nothing; take at least 3, or validation.early_stopping: plateau"
            )
        if self.early_stopping_min_delta > 0:
            raise BadInput(
                "validation.early_stopping_min_delta: it is of no use to validation.early_stopping: variance; leave it "
                "out, and set validation.early_stopping_variance"
            )
