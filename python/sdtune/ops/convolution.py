"""Convolutions whose weights are frozen. They save no input for the backward pass, and some compute less.

torch's convolution saves its input for the gradient of the weights, which a frozen network never needs.

* :class:`FrozenConv2d` saves only the weights. Where a small image meets many weights, it is one matrix multiplication.
* :class:`WinogradConv2d` does a 3x3 convolution over a large image with filters that were transformed once.
* :class:`WinogradUpsample2D` does the same for an image that is first doubled in size.

Each class takes over the parameters of the module that it replaces, under the same names.
"""

from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from sdtune.ops.winograd import convolve

SMALL_IMAGE = 1024
"""A 3x3 convolution over fewer pixels can be one matrix multiplication."""
MANY_WEIGHTS = 2**20
"""A convolution with at least this many weights over a small image is one matrix multiplication."""
INPUT_ONLY = (True, False, False)
"""Output mask of torch's backward operators: of the gradients of input, weight and bias, only the first."""


def is_3x3(convolution: nn.Conv2d) -> bool:
    """Whether the filters are 3x3, ungrouped, and the image keeps its size."""
    window = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    return window == ((3, 3), (1, 1), (1, 1), (1, 1)) and convolution.groups == 1


def can_replace(convolution: Any) -> bool:
    """Whether :class:`FrozenConv2d` computes the same as ``convolution``."""
    return (
        type(convolution) is nn.Conv2d
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )


def can_replace_upsampling(upsampling: Any) -> bool:
    """Whether :class:`WinogradUpsample2D` computes the same as ``upsampling``: nearest neighbors, then 3x3."""
    return (
        type(upsampling) is Upsample2D
        and upsampling.name == "conv"
        and upsampling.norm is None
        and upsampling.interpolate
        and isinstance(upsampling.conv, nn.Conv2d)
        and is_3x3(upsampling.conv)
    )


class _Convolution(torch.autograd.Function):
    """torch's convolution, of which the backward pass saves the weights only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.arguments = x.shape, (stride, padding, dilation, groups)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.arguments
        # the gradient of the input depends on the input's shape, not on its values
        shape_only = d_outs[0].new_empty(1).expand(ctx.shape)
        d_x, _, _ = torch.ops.aten.convolution_backward(
            d_outs[0], shape_only, weight, None, stride, padding, dilation, False, (0, 0), groups, INPUT_ONLY
        )
        return d_x, None, None, None, None, None, None


def _patches(x: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w] -> [b * h * w, 9 * c]: the 3x3 neighborhood of each pixel."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    b, h, w, c = padded.shape
    image, row, column, channel = padded.stride()
    windows = padded.as_strided((b, h - 2, w - 2, 3, 3, c), (image, row, column, row, column, channel))
    return windows.reshape(-1, 9 * c)


class _MatmulConvolution(torch.autograd.Function):
    """3x3 with padding 1 as one matrix multiplication. oneDNN would copy the weights at each call."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        matrix = weight.permute(0, 2, 3, 1).flatten(1)  # [out, 9 * in], a view of channels-last weights
        ctx.save_for_backward(matrix)
        b, _, h, w = x.shape
        return F.linear(_patches(x), matrix, bias).view(b, h, w, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (matrix,), [d_out] = ctx.saved_tensors, d_outs
        b, out, h, w = d_out.shape
        d_patches = (d_out.permute(0, 2, 3, 1).reshape(-1, out) @ matrix).view(b, h, w, 3, 3, -1)
        d_padded = d_patches.new_zeros(
            b, h + 2, w + 2, d_patches.shape[-1], dtype=torch.promote_types(d_out.dtype, torch.float32)
        )
        for i in range(3):
            for j in range(3):
                d_padded[:, i : i + h, j : j + w] += d_patches[:, :, :, i, j]
        return d_padded[:, 1:-1, 1:-1].to(d_out.dtype).permute(0, 3, 1, 2), None, None


class FrozenConv2d(nn.Conv2d):
    """A convolution without gradients of its weights.

    Args:
        convolution: what it replaces, see :func:`can_replace`.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            convolution.groups,
            device="meta",  # the parameters are taken over
        )
        self.weight, self.bias = convolution.weight, convolution.bias
        self.train(convolution.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[b, in, h, w] -> [b, out, h', w']."""
        out: torch.Tensor
        if self.weight.numel() >= MANY_WEIGHTS and is_3x3(self) and input[0, 0].numel() < SMALL_IMAGE:
            out = _MatmulConvolution.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        else:
            out = _Convolution.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        return out


class WinogradConv2d(FrozenConv2d):
    """A 3x3 convolution by Winograd's method.

    Args:
        convolution: what it replaces, see :func:`can_replace` and :func:`is_3x3`.
        filters: its transformed filters, [4, 4, in, out].
        kernel: transform tiles of bf16 in the compiled kernels.
    """

    filters: torch.Tensor

    def __init__(self, convolution: nn.Conv2d, filters: torch.Tensor, *, kernel: bool = False) -> None:
        super().__init__(convolution)
        self.register_buffer("filters", filters, persistent=False)
        self._kernel = kernel

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[b, in, h, w] -> [b, out, h, w]."""
        if input.shape[2] % 2 or input.shape[3] % 2:  # the method's tiles are 2x2
            return super().forward(input)
        return convolve(input, self.filters, self.bias, kernel=self._kernel and input.dtype is torch.bfloat16)


class WinogradUpsample2D(nn.Module):
    """Doubles an image by nearest neighbors, then convolves it by Winograd's method.

    Args:
        upsampling: what it replaces, see :func:`can_replace_upsampling`.
        filters: transformed filters of its convolution, [3, 3, in, out].
    """

    filters: torch.Tensor

    def __init__(self, upsampling: Upsample2D, filters: torch.Tensor) -> None:
        super().__init__()
        self.conv = FrozenConv2d(upsampling.conv)
        self.register_buffer("filters", filters, persistent=False)
        self.train(upsampling.training)

    def forward(self, hidden_states: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        """[b, in, h, w] -> [b, out, 2 h, 2 w], or of ``output_size`` where a level below was of odd size."""
        if output_size is not None:
            out: torch.Tensor = self.conv(F.interpolate(hidden_states, size=output_size, mode="nearest"))
            return out
        return convolve(hidden_states, self.filters, self.conv.bias)
