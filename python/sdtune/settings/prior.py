"""Settings of prior preservation."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sdtune.errors import BadInput
from sdtune.settings.bounds import Ge, Le
from sdtune.settings.fields import Flag, HostPath, Settings, settings_of
from sdtune.settings.lora import ADAPTED


@dataclass(frozen=True, kw_only=True)
class PriorArgs(Settings):
    """Prior preservation: class pictures that the model has to draw as before (DreamBooth, arXiv 2208.12242)."""

    section: ClassVar[str] = "prior"
    prefix: ClassVar[str] = "training_prior_"

    preservation: Annotated[bool, Flag("with_prior_preservation"), ADAPTED] = False
    """Train on class pictures too, one for each sample. A step then takes twice as long."""
    class_prompt: Annotated[str | None, ADAPTED] = None
    """The caption of the class pictures, such as: a photo of a toy."""
    num_class_images: Annotated[int, Ge(1), Le(100_000), ADAPTED] = 100
    """Number of class pictures."""
    class_path: Annotated[HostPath | None, Flag("class_data_dir"), ADAPTED] = None
    """Folder on the hosts with class pictures of your own. Unset: the model draws them before the training, on all
    ranks, and a host keeps them for other runs with the same model and class prompt."""
    loss_weight: Annotated[float, Ge(0), Le(1_000_000), Flag("prior_loss_weight"), ADAPTED] = 1.0
    """Weight of the loss on class pictures."""

    def __post_init__(self) -> None:
        """Check the bounds, and that prior preservation and its class prompt come together."""
        super().__post_init__()
        if self.preservation and not (self.class_prompt or "").strip():
            raise BadInput(
                "prior.class_prompt: prior preservation needs the caption of the class pictures; set it, for example "
                "to: a photo of a toy"
            )
        given = [s.name for s in settings_of(PriorArgs) if getattr(self, s.name) != s.default]
        if not self.preservation and given:
            raise BadInput(
                f"prior.{given[0]}: it is of no use without prior preservation; switch prior.preservation on, or leave "
                f"it out"
            )
