"""The entry point: replace the modules of a frozen UNet by faster ones that save less for the backward pass.

Nothing here knows a model family. What a module becomes follows from its type and, for Winograd's method, from
:mod:`sdtune.ops.winograd_selection`.
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
)
from sdtune.ops.normalization import FrozenGroupNorm
from sdtune.ops.winograd_selection import KERNEL_PIXELS, WINOGRAD_PIXELS, Tensors, winograd_filters


def _replacement(name: str, module: nn.Module, filters: Mapping[str, torch.Tensor], kernel: bool) -> nn.Module | None:
    if can_replace(module):
        assert isinstance(module, nn.Conv2d)
        return WinogradConv2d(module, filters[name], kernel=kernel) if name in filters else FrozenConv2d(module)
    if can_replace_upsampling(module) and f"{name}.conv" in filters:
        return WinogradUpsample2D(module, filters[f"{name}.conv"])
    if FrozenResnetBlock.can_replace(module):
        return FrozenResnetBlock(module)
    if FrozenTransformerBlock.can_replace(module):
        return FrozenTransformerBlock(module, kernel=kernel)
    if kernel and FrozenGroupNorm.can_replace(module):
        assert isinstance(module, nn.GroupNorm)
        return FrozenGroupNorm(module)
    return None


def replace_modules(
    network: nn.Module, filters: Mapping[str, torch.Tensor] | None = None, *, kernel: bool = False
) -> None:
    """Replace what a frozen ``network`` consists of by modules that save less for the backward pass.

    The state dict's keys stay the same. So do results, except for the rounding of sums.

    Args:
        network: its own class stays.
        filters: of the convolutions that use Winograd's method, see :func:`winograd_filters`.
        kernel: use the compiled ones of :mod:`sdtune.ops.kernels.elementwise`, which are for bf16.
    """
    _replace_children(network, "", filters or {}, kernel)


def _replace_children(parent: nn.Module, prefix: str, filters: Mapping[str, torch.Tensor], kernel: bool) -> None:
    for child_name, child in list(parent.named_children()):
        name = f"{prefix}{child_name}"
        replacement = _replacement(name, child, filters, kernel)
        if replacement is not None:
            setattr(parent, child_name, replacement)
        _replace_children(replacement or child, f"{name}.", filters, kernel)


def optimize_unet(
    unet: UNet2DConditionModel,
    *,
    example_inputs: Mapping[str, Any],
    attention: Literal["blockwise", "sdpa"],
    convolution: Literal["winograd", "direct"],
    map_tensors: Callable[[Callable[[], Tensors], str], Tensors] = lambda make, chosen: make(),
) -> None:
    """Replace attention, convolutions and blocks of a frozen UNet, in place.

    Args:
        unet: without gradients, in evaluation mode, with its final weights.
        example_inputs: keyword arguments of a call, of the shapes to come; tensors may be on the meta device.
        attention: ``blockwise`` is the compiled kernels in bf16 where this processor has some, also for normalizations,
            gated GELU and Winograd's transforms, else torch's operators in blocks; ``sdpa`` is torch's own attention,
            and no compiled kernel.
        convolution: ``winograd`` where it is faster at the shapes of ``example_inputs``, or ``direct`` everywhere.
        map_tensors: returns the tensors that its first argument makes, such as from a file that ranks share; the second
            one tells one choice of convolutions from another.

    Raises:
        BadInput: the compiled kernel is missing.
    """
    kernel = attention == "blockwise" and unet.dtype is torch.bfloat16 and kernels.usable()
    if attention == "blockwise":
        processor = BlockwiseProcessor(kernel=kernel)
    filters: Tensors = {}
    if convolution == "winograd":
        pixels = KERNEL_PIXELS if kernel else WINOGRAD_PIXELS
        filters = map_tensors(lambda: winograd_filters(unet, example_inputs, min_pixels=pixels), f"{pixels}")
    replace_modules(unet, filters, kernel=kernel)
    if attention == "blockwise":
        unet.set_attn_processor(processor)
