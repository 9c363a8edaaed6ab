"""A frozen UNet as training uses it: its weights mapped from the cache, its operations replaced by faster ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel

from sdtune.errors import BadInput
from sdtune.host.processor import instruction_set
from sdtune.models.geometry import read_geometry
from sdtune.models.loading import load_network
from sdtune.models.weights import load_converted, map_tensors
from sdtune.ops.unet import optimize_unet
from sdtune.settings import Job


def optimize_with_ipex(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """Optimize ``unet`` with Intel Extension for PyTorch. Its weights stay memory-mapped, shared by all ranks.

    The extension's packed weights would be private to each rank and need the memory twice. Our convolutions use
    transformed filters anyway.

    Raises:
        BadInput: the extension is not in this environment.
    """
    try:
        import intel_extension_for_pytorch as ipex  # type: ignore[import-not-found]
    except ImportError as error:
        raise BadInput(
            f"software_stack: ipex is asked for, but intel_extension_for_pytorch does not load ({error}); provision "
            f"with software_stack=ipex, or train with native"
        ) from None
    ipex.disable_auto_channels_last()  # it would copy the weights, which are channels-last already
    optimized: UNet2DConditionModel = ipex.optimize(unet, dtype=dtype, inplace=True, weights_prepack=False)
    return optimized


def resolve_convolution(job: Job) -> Literal["winograd", "direct"]:
    """The job's convolution algorithm, with ``auto`` resolved for this host."""
    asked = job.training.convolution
    if asked != "auto":
        return asked
    # with a matrix unit (AMX), Winograd's transforms cost more than the multiplications they save
    return "direct" if job.training.mixed_precision == "bf16" and instruction_set() == "AMX" else "winograd"


def load_unet(
    job: Job,
    cache: Path,
    key: str,
    dtype: torch.dtype,
    example_conditioning: Callable[[UNet2DConditionModel], Mapping[str, Any]],
) -> UNet2DConditionModel:
    """Load the job's UNet.

    Args:
        job: names the model and the operations.
        cache: folder of converted weights.
        key: fingerprint of the model.
        dtype: of the weights.
        example_conditioning: keyword arguments of a UNet for one sample, besides latents and timestep; its tensors may
            be on the meta device.

    Raises:
        BadInput: the cache has no space left, or the job's software stack is not installed.
    """
    model = Path(job.model.path)
    unet = load_converted(
        lambda: load_network(UNet2DConditionModel, model, "unet", torch_dtype=dtype),
        lambda: UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model, subfolder="unet")),
        cache,
        "unet",
        key,
        dtype,
    )
    side = read_geometry(model).latent_side(job.data.resolution)
    optimize_unet(
        unet,
        example_inputs={
            "sample": torch.empty(1, unet.config.in_channels, side, side, dtype=dtype, device="meta"),
            "timestep": torch.empty(1, device="meta"),
            **example_conditioning(unet),
        },
        attention=job.training.attention,
        convolution=resolve_convolution(job),
        map_tensors=lambda make, chosen: map_tensors(make, cache, f"unet-winograd-{side}-{chosen}", key, dtype),
    )
    return optimize_with_ipex(unet, dtype) if job.software_stack == "ipex" else unet
