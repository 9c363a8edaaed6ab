"""Adding LoRA adapters to the weights of a pipeline, on disk or in memory, at any weight."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdtune.files import replace_folder
from sdtune.launch.run_folder import Run
from sdtune.methods.lora_files import Factors, LoraFile, add_to_weights, load_diffusers, other_model
from sdtune.models.pipelines import copy_pipeline


def deltas(factors: Factors, scaling: float) -> Mapping[str, torch.Tensor]:
    """What adapters add to weights, float32: {module: scaling * B A}."""
    return {module: scaling * (b.float() @ a.float()) for module, (a, b) in factors.items()}


def bake(lora: LoraFile, model: Path, target: Path, weight: float) -> None:
    """Write a copy of the pipeline ``model`` with adapters added to its weights; completely or not at all.

    Args:
        lora: the adapters.
        model: folder of the pipeline that they were learned on.
        target: folder of the copy.
        weight: how strongly; 1 is as learned, 0 is the model itself.

    Raises:
        BadInput: the adapters are of another base model.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    copy_pipeline(model, temporary, without_weights=lora.networks)
    for network, factors in lora.networks.items():
        add_to_weights(model / network, temporary / network, deltas(factors, weight * lora.scaling))
    replace_folder(temporary, target)


@torch.no_grad()
def change_weight(pipeline: Any, run: Run, change: float) -> None:
    """Add the adapters of a run to the networks of its loaded pipeline once more, ``change`` times.

    Raises:
        BadInput: the adapters are of another base model.
    """
    lora = load_diffusers(run.lora)
    for network, factors in lora.networks.items():
        modules = dict(getattr(pipeline, network).named_modules())
        for module, delta in deltas(factors, change * lora.scaling).items():
            if module not in modules or modules[module].weight.shape != delta.shape:
                raise other_model(module, run.pipeline / network)
            modules[module].weight += delta
