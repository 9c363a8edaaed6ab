"""All model families. A model's family follows from the pipeline class in its ``model_index.json``."""

import re
from pathlib import Path

from sdtune.errors import BadInput
from sdtune.models.family import Family
from sdtune.models.folder import read_config, refusing
from sdtune.models.sd import StableDiffusion
from sdtune.models.sdxl import StableDiffusionXL
from standalone.model_folder import layout_of

FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL())


def family_of(model: str | Path) -> Family:
    """Find the family of a model folder.

    Raises:
        BadInput: the folder is not a pipeline in diffusers layout, or no family supports its class.
    """
    model = Path(model)
    if not model.is_dir():
        why = "is a file" if model.exists() else "does not exist"
        raise BadInput(f"model.path: the model folder {model} {why}")
    with refusing(model, "cannot be read"):
        layout_of(model)
    name = read_config(model / "model_index.json").get("_class_name")
    return next(family for family in FAMILIES if name in family.pipeline_classes)


def check_folder(model: Path, setting: str, remedy: str) -> Family:
    """Check a model folder that images are drawn with, as one to train with is checked.

    Args:
        model: the folder.
        setting: that names it, for errors.
        remedy: what to do about a damaged file.

    Returns:
        Its family.

    Raises:
        BadInput: names everything that is wrong, with the remedy.
    """
    try:
        family = family_of(model)
        family.check(model, {})
    except BadInput as error:
        said = str(error).replace("model.path: ", f"{setting}: ")
        raise BadInput(re.sub(r"fetch (the model|it) again", remedy, said)) from None
    return family
