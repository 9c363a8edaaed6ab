"""Which convolutions of a network Winograd's method computes: decided by the shapes of a forward pass, not by names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sdtune.ops.convolution import can_replace, can_replace_upsampling, is_3x3
from sdtune.ops.winograd import transform_filters

WINOGRAD_PIXELS = 1024
"""Smallest image for Winograd's method. Transformed filters are 16/9 as large, and each pixel makes up for that."""
KERNEL_PIXELS = 256
"""The same where the compiled kernels transform tiles."""
WINOGRAD_CHANNELS = 64
"""Fewest channels for Winograd's method. With less, the transforms are most of the work."""

Tensors = dict[str, torch.Tensor]


def _to_meta(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {key: _to_meta(value) for key, value in x.items()}
    return x.to("meta") if isinstance(x, torch.Tensor) else x


def convolution_inputs(network: nn.Module, example_inputs: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Shape of the input of each convolution in a forward pass, by the module's name. Nothing is computed.

    Args:
        network: without fused operations.
        example_inputs: keyword arguments of a call; tensors on any device, also meta.
    """
    shapes: dict[str, torch.Size] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: shapes.update({name: inputs[0].shape}))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            torch.func.functional_call(network, _to_meta(network.state_dict()), (), _to_meta(example_inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def winograd_filters(
    network: nn.Module, example_inputs: Mapping[str, Any], *, min_pixels: int = WINOGRAD_PIXELS
) -> Tensors:
    """Transformed filters of the convolutions for which Winograd's method is faster, by the module's name.

    Args:
        network: without fused operations.
        example_inputs: keyword arguments of a call, see :func:`convolution_inputs`.
        min_pixels: size of the smallest image, unless the image is doubled before the convolution.
    """
    upsampled = {f"{name}.conv" for name, module in network.named_modules() if can_replace_upsampling(module)}
    filters: Tensors = {}
    for name, (_, channels, height, width) in convolution_inputs(network, example_inputs).items():
        convolution = network.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        if name in upsampled:  # 9 transformed numbers for 9 weights: no image is too small
            filters[name] = transform_filters(convolution.weight, doubled=True)
        elif (
            can_replace(convolution)
            and is_3x3(convolution)
            and height % 2 == width % 2 == 0
            and height * width >= min_pixels
            and min(channels, convolution.out_channels) >= WINOGRAD_CHANNELS
        ):
            filters[name] = transform_filters(convolution.weight)
    return filters
