"""A normalization fused with the gated GELU that follows, which saves one tensor for the backward pass.

torch saves three. The input alone is enough: the rest is recomputed. Weights are frozen, so gradients
go only to it, and to an adapter beside the projection.
"""

from typing import Any

import torch
from torch import nn

from sdtune.ops.convolution import INPUT_ONLY
from sdtune.ops.low_rank import Projection, split

RECOMPUTED_CHANNELS = 640
"""Up to this many channels, the projection before a gated GELU is recomputed: 4% more FLOPs for 150 MB less."""
BLOCK_ROWS = 512
"""Tokens whose gated GELU is computed at a time: the output of its projection is 5 MB at 640 channels in bf16."""


def _blocks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[..., c] -> [BLOCK_ROWS, c] each, and a last one with the rest."""
    return torch.split(x.flatten(0, -2), BLOCK_ROWS)


def _layer_norm(x: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, and the means and reciprocal standard deviations for its gradient."""
    return torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class _NormGatedGelu(torch.autograd.Function):
    """a * gelu(b) with (a, b) = norm(x) W^T + bias, which is eight times as large as x.

    Computed in blocks of tokens, so that intermediate results stay in the cache. Saves x, and also (a, b) unless that
    is large and cheap to recompute. The projection may have an adapter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, norm: nn.LayerNorm, projection: Projection, *factors: torch.Tensor
    ) -> torch.Tensor:
        out, saved = x.new_empty(*x.shape[:-1], len(projection.weight) // 2), []
        recompute = projection.weight.shape[1] <= RECOMPUTED_CHANNELS
        for x_block, out_block in zip(_blocks(x), _blocks(out), strict=True):
            both = projection.forward(_layer_norm(x_block, norm)[0], factors)
            a, b = both.chunk(2, dim=-1)
            torch.ops.aten.gelu.out(b, out=out_block).mul_(a)
            if not recompute:
                saved.append(both)
        ctx.norm, ctx.projection, ctx.num_factors = norm, projection, len(factors)
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
            normed, *statistics = _layer_norm(x_block, norm)
            both = saved[i] if saved else projection.forward(normed, factors)
            a, b = both.chunk(2, dim=-1)
            d_both = torch.empty_like(both)
            d_a, d_b = d_both.chunk(2, dim=-1)
            torch.ops.aten.gelu.out(b, out=d_a).mul_(d_out)
            torch.mul(d_out, a, out=d_b)
            torch.ops.aten.gelu_backward.grad_input(d_b, b, grad_input=d_b)
            d_normed = d_both @ projection.weight
            for total, part in zip(d_factors, projection.backward(normed, d_both, factors, d_normed), strict=True):
                total += part
            d_block, _, _ = torch.ops.aten.native_layer_norm_backward(
                d_normed, x_block, norm.normalized_shape, *statistics, norm.weight, norm.bias, INPUT_ONLY
            )
            d_x.append(d_block)
        return torch.cat(d_x).view(x.shape), None, None, *d_factors


def norm_gated_gelu(x: torch.Tensor, norm: nn.LayerNorm, projection: nn.Module) -> torch.Tensor:
    """A layer normalization followed by a gated GELU: a * gelu(b) with (a, b) = projection(norm(x)).

    Args:
        x: [..., channels].
        norm: over the channels.
        projection: from the channels to twice the width of the result; frozen, with or without an adapter, see
            :func:`sdtune.ops.low_rank.is_fusable`.

    Returns:
        [..., width]; gradients go to ``x`` and to the factors of the adapter.
    """
    frozen, factors = split(projection)
    out: torch.Tensor = _NormGatedGelu.apply(x, norm, frozen, *factors)  # type: ignore[no-untyped-call]
    return out
