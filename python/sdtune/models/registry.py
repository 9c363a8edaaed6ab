"""All model families. A model's family follows from the pipeline class in its ``model_index.json``."""

from pathlib import Path

from sdtune.errors import BadInput
from sdtune.models.family import Family
from sdtune.models.folder import pipeline_class
from sdtune.models.sd import StableDiffusion

FAMILIES: tuple[Family, ...] = (StableDiffusion(),)


def family_of(model: str | Path) -> Family:
    """Find the family of a model folder.

    Raises:
        BadInput: the folder is not a pipeline in diffusers layout, or no family supports its class.
    """
    name = pipeline_class(Path(model))
    for family in FAMILIES:
        if name in family.pipeline_classes:
            return family
    supported = ", ".join(c for family in FAMILIES for c in family.pipeline_classes)
    raise BadInput(f"model.path: {model} is a {name}, which is not supported; supported pipelines: {supported}")
