"""Settings of the base model."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sdtune.settings.bounds import PathText
from sdtune.settings.fields import Derived, Flag, Settings


@dataclass(frozen=True, kw_only=True)
class ModelArgs(Settings):
    """The base model."""

    section: ClassVar[str] = "model"

    path: Annotated[str, PathText(), Flag("pretrained_model_name_or_path"), Derived("cluster_model_path")]
    """Folder of a Stable Diffusion pipeline in diffusers layout (``unet/``, ``vae/``, ``text_encoder/``, ...)."""
    weights_cache: Annotated[str | None, PathText(), Derived("cluster_weights_cache")] = None
    """Folder, on each host, of the weights converted to the type of the training. Unset: ~/.cache/sdtune/weights."""
