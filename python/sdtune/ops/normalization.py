"""Normalizations fused with what follows, a gated GELU or SiLU. They save one tensor for the backward pass.

torch saves three. The input alone is enough: the rest is recomputed. Weights are frozen, so gradients
go only to it, and to an adapter beside the projection.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from sdtune.ops.convolution import INPUT_ONLY
from sdtune.ops.kernels import elementwise
from sdtune.ops.low_rank import Projection, split

RECOMPUTED_CHANNELS = 640
"""Up to this many channels, the projection before a gated GELU is recomputed: 4% more FLOPs for 150 MB less. Above, it
saves 27 MB more for 2%, which is left to the caller."""
BLOCK_ROWS = 512
"""Tokens whose gated GELU is computed at a time: the output of its projection is 5 MB at 640 channels in bf16."""


def _blocks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[..., c] -> [BLOCK_ROWS, c] each, and a last one with the rest."""
    return torch.split(x.flatten(0, -2), BLOCK_ROWS)


def layer_norm(x: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, and the means and reciprocal standard deviations for :func:`layer_norm_backward`."""
    return torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def layer_norm_backward(
    d_out: torch.Tensor, x: torch.Tensor, norm: nn.LayerNorm, statistics: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The gradient of x; ``statistics`` are the means and reciprocal standard deviations of :func:`layer_norm`."""
    d_x: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
        d_out, x, norm.normalized_shape, *statistics, norm.weight, norm.bias, INPUT_ONLY
    )[0]
    return d_x


class _NormGatedGelu(torch.autograd.Function):
    """a * gelu(b) with (a, b) = norm(x) W^T + bias, which is eight times as large as x.

    Computed in blocks of tokens, so that intermediate results stay in the cache. Saves x, and also (a, b) unless that
    is recomputed. The projection may have an adapter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm: nn.LayerNorm,
        projection: Projection,
        kernel: bool,
        recompute: bool,
        only_save: bool,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        out, saved = x.new_empty(*x.shape[:-1], len(projection.weight) // 2), []
        for x_block, out_block in zip(_blocks(x), _blocks(out), strict=True) if not only_save else ():
            both = projection.forward(layer_norm(x_block, norm)[0], factors)
            if kernel:
                elementwise.gated_gelu(both, out_block)
            else:
                a, b = both.chunk(2, dim=-1)
                torch.ops.aten.gelu.out(b, out=out_block).mul_(a)
            if not recompute:
                saved.append(both)
        ctx.norm, ctx.projection, ctx.kernel, ctx.num_factors = norm, projection, kernel, len(factors)
        ctx.save_for_backward(x, *factors, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        factors, saved = tuple(others[: ctx.num_factors]), others[ctx.num_factors :]
        norm: nn.LayerNorm = ctx.norm
        projection: Projection = ctx.projection
        d_x, d_factors = [], [torch.zeros_like(factor) for factor in factors]
        for i, (x_block, d_out) in enumerate(zip(_blocks(x), _blocks(d_outs[0]), strict=True)):
            normed, *statistics = layer_norm(x_block, norm)
            both = saved[i] if saved else projection.forward(normed, factors)
            if ctx.kernel:
                d_both = elementwise.gated_gelu_backward(both, d_out.contiguous())
            else:
                a, b = both.chunk(2, dim=-1)
                d_both = torch.empty_like(both)
                d_a, d_b = d_both.chunk(2, dim=-1)
                torch.ops.aten.gelu.out(b, out=d_a).mul_(d_out)
                torch.mul(d_out, a, out=d_b)
                torch.ops.aten.gelu_backward.grad_input(d_b, b, grad_input=d_b)
            d_normed = d_both @ projection.weight
            for total, part in zip(d_factors, projection.backward(normed, d_both, factors, d_normed), strict=True):
                total += part
            d_x.append(layer_norm_backward(d_normed, x_block, norm, statistics))
        return torch.cat(d_x).view(x.shape), None, None, None, None, None, *d_factors


def norm_gated_gelu(
    x: torch.Tensor,
    norm: nn.LayerNorm,
    projection: nn.Module,
    *,
    kernel: bool = False,
    recompute: bool = False,
    only_save: bool = False,
) -> torch.Tensor:
    """A layer normalization followed by a gated GELU: a * gelu(b) with (a, b) = projection(norm(x)).

    Args:
        x: [..., channels].
        norm: over the channels.
        projection: from the channels to twice the width of the result; frozen, with or without an adapter, see
            :func:`sdtune.ops.low_rank.is_fusable`.
        kernel: let the compiled kernels do the gated GELU where ``x`` is bf16.
        recompute: save no projection, whatever its size; else see :data:`RECOMPUTED_CHANNELS`.
        only_save: compute nothing, for a checkpoint that recomputes ``x`` and then goes on with the backward pass; the
            result is undefined. Needs ``recompute``.

    Returns:
        [..., width]; gradients go to ``x`` and to the factors of the adapter.
    """
    frozen, factors = split(projection)
    kernel = kernel and x.dtype is torch.bfloat16
    recompute = recompute or x.shape[-1] <= RECOMPUTED_CHANNELS
    out: torch.Tensor = _NormGatedGelu.apply(  # type: ignore[no-untyped-call]
        x, norm, frozen, kernel, recompute, only_save, *factors
    )
    return out


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w] -> [b, h * w, c], no copy where channels are last in memory."""
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


class _GroupNorm(torch.autograd.Function):
    """A group normalization in the compiled kernels, with or without SiLU. Saves x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, norm: nn.GroupNorm, silu: bool) -> torch.Tensor:
        out, statistics = elementwise.group_norm(_pixels(x), norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
        ctx.save_for_backward(x, statistics)
        ctx.norm, ctx.silu = norm, silu
        b, c, h, w = x.shape
        result: torch.Tensor = out.view(b, h, w, c).permute(0, 3, 1, 2)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x, statistics), [d_out], norm = ctx.saved_tensors, d_outs, ctx.norm
        b, c, h, w = x.shape
        d_x = elementwise.group_norm_backward(
            _pixels(x), norm.weight, norm.bias, statistics, _pixels(d_out), norm.num_groups, ctx.silu
        )
        return d_x.view(b, h, w, c).permute(0, 3, 1, 2), None, None


class FrozenGroupNorm(nn.GroupNorm):
    """A group normalization of images in the compiled kernels; of what is not bf16, torch's.

    Args:
        norm: what it replaces, see :meth:`can_replace`.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, device="meta")  # the parameters are taken over
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)

    @staticmethod
    def can_replace(module: Any) -> bool:
        """Whether ``module`` is a group normalization with frozen weights."""
        return type(module) is nn.GroupNorm and module.affine and not module.weight.requires_grad

    def forward(self, input: torch.Tensor, *, silu: bool = False) -> torch.Tensor:
        """[b, c, h, w] -> the same shape, channels last in memory; ``silu``: whether SiLU follows."""
        if input.dim() == 4 and input.dtype is self.weight.dtype is torch.bfloat16:
            out: torch.Tensor = _GroupNorm.apply(input, self, silu)  # type: ignore[no-untyped-call]
            return out
        out = super().forward(input)
        return nn.functional.silu(out) if silu else out
