"""Operations of a UNet whose weights never change: they keep less for the backward pass, and one computes less.

torch's convolution keeps its input for the gradient of its weights, which a frozen network never asks for; a gated GELU
keeps three tensors, and a normalization followed by SiLU two, where one tells all. Together that is a third of what a
step at 512 pixels holds. A convolution over an image that was just doubled in size meets every pixel several times;
with the weights of those meetings added up beforehand it takes 4 products where it took 9.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

_OUTPUTS = (True, False, False)  # of the gradients of input, weight and bias, only the first


class _Convolution(torch.autograd.Function):
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
        # of the input, only the shape matters for its own gradient
        shape_only = d_outs[0].new_empty(1).expand(ctx.shape)
        d_x, _, _ = torch.ops.aten.convolution_backward(
            d_outs[0], shape_only, weight, None, stride, padding, dilation, False, (0, 0), groups, _OUTPUTS
        )
        return d_x, None, None, None, None, None, None


class _GatedGelu(torch.autograd.Function):
    """a * gelu(b) of [..., 2 n] = (a, b); keeps the one tensor that it was given."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(both)
        a, b = both.chunk(2, dim=-1)
        return a * F.gelu(b)

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> torch.Tensor:
        (both,) = ctx.saved_tensors
        a, b = both.chunk(2, dim=-1)
        d_both = torch.empty_like(both)
        d_a, d_b = d_both.chunk(2, dim=-1)
        torch.mul(d_outs[0], F.gelu(b), out=d_a)
        d_b.copy_(torch.ops.aten.gelu_backward(d_outs[0] * a, b))
        return d_both


class _FrozenConv2d(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return out


class _FrozenGEGLU(GEGLU):  # type: ignore[misc]
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _GatedGelu.apply(self.proj(hidden_states))  # type: ignore[no-untyped-call]
        return out


class _NormSilu(torch.autograd.Function):
    """silu(group_norm(x)); keeps x, and computes what lies between again."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.arguments = (groups, eps)
        return F.silu(F.group_norm(x, groups, weight, bias, eps))

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        groups, eps = ctx.arguments
        shape = (len(x), x.shape[1], x[0, 0].numel(), groups)
        normed, mean, rstd = torch.native_group_norm(x, weight, bias, *shape, eps)
        d_normed = torch.ops.aten.silu_backward(d_outs[0], normed)
        d_x, _, _ = torch.ops.aten.native_group_norm_backward(d_normed, x, mean, rstd, weight, *shape, _OUTPUTS)
        return d_x, None, None, None, None


class _FrozenNormSilu(nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _NormSilu.apply(  # type: ignore[no-untyped-call]
            input, self.num_groups, self.weight, self.bias, self.eps
        )
        return out


class _SiluOfTime(nn.SiLU):
    """The nonlinearity of a residual block whose normalizations do theirs: what is left is the time's, [batch, dim]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input if input.dim() == 4 else super().forward(input)


def subpixel_weight(weight: torch.Tensor) -> torch.Tensor:
    """The 2x2 kernels that do to an image what a 3x3 kernel does to the image doubled by repeating its pixels.

    Args:
        weight: [out, in, 3, 3].

    Returns:
        [4 * out, in, 2, 2] of the same type: for the result's even and odd rows, within these even and odd columns.
    """

    def along(kernel: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, middle, last = kernel.unbind(dim)
        even, odd = (first, middle + last), (first + middle, last)
        return torch.stack(even, dim), torch.stack(odd, dim)

    wide = weight.float() if weight.dtype == torch.bfloat16 else weight
    kernels = torch.cat([kernel for rows in along(wide, 2) for kernel in along(rows, 3)])
    return kernels.to(weight.dtype, memory_format=torch.channels_last)


class _FrozenUpsample2D(Upsample2D):  # type: ignore[misc]
    _kernels: torch.Tensor | None = None  # added up when first needed

    def forward(self, hidden_states: torch.Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        batch, _, height, width = hidden_states.shape
        if output_size is not None or height * width < 256:  # small images: reading the larger kernels costs the gain
            out: torch.Tensor = super().forward(hidden_states, output_size, *args, **kwargs)
            return out
        if self._kernels is None:
            self._kernels = subpixel_weight(self.conv.weight)
        parts: torch.Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
            hidden_states, self._kernels, self.conv.bias.repeat(4), (1, 1), (1, 1), (1, 1), 1
        )
        parts = parts.view(batch, 2, 2, -1, height + 1, width + 1)  # row parity, column parity, out
        rows = [torch.stack([parts[:, i, j, :, i : i + height, j : j + width] for j in (0, 1)], dim=-1) for i in (0, 1)]
        doubled = torch.stack(rows, dim=-3)  # [batch, out, height, 2, width, 2]
        return doubled.reshape(batch, -1, 2 * height, 2 * width).contiguous(memory_format=torch.channels_last)


def _doubles_then_convolves(up: Any) -> bool:
    if up.name != "conv" or up.norm is not None or not up.interpolate or not isinstance(up.conv, nn.Conv2d):
        return False
    return up.conv.kernel_size == (3, 3) and up.conv.bias is not None


def use_frozen_ops(network: nn.Module) -> None:
    """Let the modules of a frozen ``network`` that can, keep or compute less.

    The state dict stays the same: only the modules' classes change. So does the result, but that the doubled image's
    kernels are rounded after they were added up.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = _FrozenConv2d
        elif type(module) is GEGLU:
            module.__class__ = _FrozenGEGLU
        elif (
            type(module) is ResnetBlock2D
            and isinstance(module.nonlinearity, nn.SiLU)
            and module.time_embedding_norm == "default"  # each normalization is followed by the nonlinearity
        ):
            module.norm1.__class__ = module.norm2.__class__ = _FrozenNormSilu
            module.nonlinearity = _SiluOfTime()
        elif type(module) is Upsample2D and _doubles_then_convolves(module):
            module.__class__ = _FrozenUpsample2D
