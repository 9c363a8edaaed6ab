"""All model families. A model's family follows from the pipeline class in its ``model_index.json``."""

from pathlib import Path

from sdtune.errors import BadInput
from sdtune.models.family import Family
from sdtune.models.folder import read_config
from sdtune.models.sd import StableDiffusion
from sdtune.models.sdxl import StableDiffusionXL
from standalone.model_folder import ModelError, layout_of

FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL())


def family_of(model: str | Path) -> Family:
    """Find the family of a model folder.

    Raises:
        BadInput: the folder is not a pipeline in diffusers layout, or no family supports its class.
    """
    model = Path(model)
    if not model.is_dir():
        raise BadInput(f"model.path: the model folder {model} does not exist")
    try:
        layout_of(model)
    except ModelError as error:
        raise BadInput(f"model.path: {model} {error}") from None
    name = read_config(model / "model_index.json").get("_class_name")
    return next(family for family in FAMILIES if name in family.pipeline_classes)
