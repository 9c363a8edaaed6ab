"""The entry point: replace the modules of a frozen UNet by faster ones that save less for the backward pass.

Nothing here knows a model family. What a module becomes follows from its type and, for Winograd's method, from the size
of the images that it gets in a forward pass on the meta device.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdtune.ops import kernels
from sdtune.ops.attention import BlockwiseProcessor
from sdtune.ops.blocks import FrozenResnetBlock, FrozenTransformerBlock
from sdtune.ops.convolution import (
    FrozenConv2d,
    WinogradConv2d,
    WinogradUpsample2D,
    can_replace,
    can_replace_upsampling,
    is_3x3,
)
from sdtune.ops.winograd import transform_filters

WINOGRAD_PIXELS = 1024
"""Smallest image for Winograd's method. Transformed filters are 16/9 as large, and each pixel makes up for that."""
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


def _replacement(name: str, module: nn.Module, filters: Mapping[str, torch.Tensor]) -> nn.Module | None:
    if can_replace(module):
        assert isinstance(module, nn.Conv2d)
        return WinogradConv2d(module, filters[name]) if name in filters else FrozenConv2d(module)
    if can_replace_upsampling(module) and f"{name}.conv" in filters:
        return WinogradUpsample2D(module, filters[f"{name}.conv"])
    if FrozenResnetBlock.can_replace(module):
        return FrozenResnetBlock(module)
    if FrozenTransformerBlock.can_replace(module):
        return FrozenTransformerBlock(module)
    return None


def replace_modules(network: nn.Module, filters: Mapping[str, torch.Tensor] | None = None) -> None:
    """Replace what a frozen ``network`` consists of by modules that save less for the backward pass.

    The state dict's keys stay the same. So do results, except for the rounding of sums.

    Args:
        network: its own class stays.
        filters: of the convolutions that use Winograd's method, see :func:`winograd_filters`.
    """
    _replace_children(network, "", filters or {})


def _replace_children(parent: nn.Module, prefix: str, filters: Mapping[str, torch.Tensor]) -> None:
    for child_name, child in list(parent.named_children()):
        name = f"{prefix}{child_name}"
        replacement = _replacement(name, child, filters)
        if replacement is not None:
            setattr(parent, child_name, replacement)
        _replace_children(replacement or child, f"{name}.", filters)


def optimize_unet(
    unet: UNet2DConditionModel,
    *,
    example_inputs: Mapping[str, Any],
    attention: Literal["blockwise", "sdpa"],
    convolution: Literal["winograd", "direct"],
    map_tensors: Callable[[Callable[[], Tensors]], Tensors] = lambda make: make(),
) -> None:
    """Replace attention, convolutions and blocks of a frozen UNet, in place.

    Args:
        unet: without gradients, in evaluation mode, with its final weights.
        example_inputs: keyword arguments of a call, of the shapes to come; tensors may be on the meta device.
        attention: ``blockwise`` is the compiled kernel in bf16 where this processor has one, else torch's operators in
            blocks; ``sdpa`` is torch's own.
        convolution: ``winograd`` where it is faster at the shapes of ``example_inputs``, or ``direct`` everywhere.
        map_tensors: returns the tensors that its argument makes, such as from a file that ranks share.

    Raises:
        BadInput: the compiled kernel is missing.
    """
    if attention == "blockwise":
        processor = BlockwiseProcessor(kernel=unet.dtype is torch.bfloat16 and kernels.usable())
    filters: Tensors = {}
    if convolution == "winograd":
        filters = map_tensors(lambda: winograd_filters(unet, example_inputs))
    replace_modules(unet, filters)
    if attention == "blockwise":
        unet.set_attn_processor(processor)
