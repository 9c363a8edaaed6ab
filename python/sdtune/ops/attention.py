"""Attention for frozen networks: one compiled kernel in bf16, elsewhere matrix multiplications that fit the cache.

At 512 pixels the UNet's first blocks attend from 4,096 positions to 4,096 positions with head dimension 40. This is a
third of a training step. torch's flash kernel for CPUs uses tiles so small that its matrix multiplications stay far
below the rate of a plain one.

* In bf16, on processors with instructions for it, :mod:`sdtune.ops.kernels` does everything in one compiled kernel.
* Elsewhere, oneDNN multiplies a block of 256 queries for each thread by the 4,096 keys of one head. The weights of such
  a block fit a core's cache. As in flash attention (Dao et al., arXiv 2205.14135), the backward pass recomputes the
  blocks. Blocks hold whole rows, so no online softmax is needed.

``python/bench/attention.py`` measures both against torch's own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sdtune.ops import kernels
from sdtune.ops.low_rank import Factors, Projection, is_fusable, split
from sdtune.ops.normalization import layer_norm, layer_norm_backward

BLOCK = 2**20
"""Weights, queries x keys, at a time and thread: 2 MB in bf16, the size of a core's own cache."""
FEW_KEYS = 256
"""Up to this many keys, as in cross-attention, one block holds all heads."""


def _query_blocks(q: torch.Tensor, k: torch.Tensor) -> list[slice]:
    """Slices of the queries, so long that their weights make one block."""
    length = max(1, BLOCK * torch.get_num_threads() // k.shape[1])
    return [slice(first, first + length) for first in range(0, q.shape[1], length)]


def _pad_to_vectors(x: torch.Tensor) -> torch.Tensor:
    """[..., d] with d padded to a multiple of 16: matrix multiplications with d columns then use whole vectors."""
    return F.pad(x, (0, -x.shape[-1] % 16)).contiguous()


class _Blockwise(torch.autograd.Function):
    """softmax(q k^T) v of [heads, n, d], [heads, m, d], [heads, m, d]; q is scaled already."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys = k.transpose(1, 2).contiguous()  # [heads, d, m]
        ctx.save_for_backward(q, keys, v)
        values = _pad_to_vectors(v)
        out = q.new_empty(*q.shape[:2], values.shape[-1])
        for head in range(len(q)):
            for block in _query_blocks(q, k):
                weights = q[head, block] @ keys[head]
                torch.softmax(weights, -1, out=weights)
                torch.mm(weights, values[head], out=out[head, block])
        return out[..., : v.shape[-1]]

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, keys, v = ctx.saved_tensors
        d_out = d_outs[0].contiguous()
        values = v.transpose(1, 2).contiguous()  # [heads, d, m]
        k = _pad_to_vectors(keys.transpose(1, 2))  # [heads, m, d, padded]
        d_q = q.new_empty(*q.shape[:2], k.shape[-1])
        # blocks are summed in float32 at least
        d_keys = torch.zeros_like(keys, dtype=torch.promote_types(q.dtype, torch.float32))
        d_values = torch.zeros_like(d_keys)
        for head in range(len(q)):
            for block in _query_blocks(q, v):
                q_block, d_block = q[head, block], d_out[head, block]
                weights = q_block @ keys[head]
                torch.softmax(weights, -1, out=weights)
                # wide and flat, [d, rows] x [rows, m], runs faster than tall and thin
                d_values[head] += d_block.t() @ weights
                d_logits = torch._softmax_backward_data(d_block @ values[head], weights, -1, weights.dtype)
                torch.mm(d_logits, k[head], out=d_q[head, block])
                d_keys[head] += q_block.t() @ d_logits
        d_k, d_v = (x.transpose(1, 2).to(q.dtype) for x in (d_keys, d_values))
        return d_q[..., : q.shape[-1]], d_k, d_v


class _FewKeys(torch.autograd.Function):
    """The same for few keys, as in cross-attention: all heads at once. The weights are a few MB, and recomputed."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.softmax(q @ k.transpose(1, 2), -1) @ v

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        (q, k, v), [d_out] = ctx.saved_tensors, d_outs
        weights = torch.softmax(q @ k.transpose(1, 2), -1)
        d_logits = torch._softmax_backward_data(d_out @ v.transpose(1, 2), weights, -1, weights.dtype)
        return d_logits @ k, d_logits.transpose(1, 2) @ q, weights.transpose(1, 2) @ d_out


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale * q k^T) v.

    Args:
        q: [heads, n, d], bf16 or a wider type.
        k: [heads, m, d].
        v: [heads, m, d].
        scale: usually d ** -0.5.

    Returns:
        [heads, n, d], of the type of ``q``; gradients go to all three.
    """
    q = q * scale
    # Adding one number to all logits of a query does not change the result. So the keys' mean is subtracted: the logits
    # get smaller, and rounding them to bf16 costs less.
    k = k - k.mean(1, keepdim=True)
    function = _FewKeys if k.shape[1] <= FEW_KEYS else _Blockwise
    out: torch.Tensor = function.apply(q.contiguous(), k, v.contiguous())  # type: ignore[no-untyped-call]
    return out


def _factors_of(projections: Sequence[Projection], factors: Sequence[torch.Tensor]) -> list[Factors]:
    """The factors of each projection, from those of all projections in one row."""
    remaining = iter(factors)
    return [() if p.scaling == 0 else (next(remaining), next(remaining)) for p in projections]


class _NormedSelfAttention(torch.autograd.Function):
    """Self-attention of norm(x), x [batch, n, channels], in the compiled kernel, with its projections to q, k and v.

    Saves x instead of q, k and v, and of norm(x), which adapters would save: 69 MB less at 512 pixels and a batch of 1,
    92 MB with adapters, for 2% more FLOPs. x is what the normalization would save too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm: nn.LayerNorm,
        heads: int,
        scale: float,
        projections: Sequence[Projection],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        out: torch.Tensor
        q, k, v = _project(layer_norm(x, norm)[0], projections, factors)
        out, log_sums = kernels.attention_forward(q, k, v, heads, scale)
        ctx.save_for_backward(x, out, log_sums, *factors)
        ctx.norm, ctx.projections, ctx.arguments = norm, projections, (heads, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, out, log_sums, *factors = ctx.saved_tensors
        normed, *statistics = layer_norm(x, ctx.norm)
        q, k, v = _project(normed, ctx.projections, factors)
        gradients = kernels.attention_backward(q, k, v, out, d_outs[0], log_sums, *ctx.arguments)
        rows = normed.flatten(0, 1)
        d_normed = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        d_factors: list[torch.Tensor] = []
        for projection, own, gradient in zip(
            ctx.projections, _factors_of(ctx.projections, factors), gradients, strict=True
        ):
            d_projected = gradient.flatten(0, 1)
            if d_normed is not None:
                d_normed.addmm_(d_projected, projection.weight)
            d_factors += projection.backward(rows, d_projected, own, d_normed)
        d_x = None if d_normed is None else layer_norm_backward(d_normed.view(x.shape), x, ctx.norm, statistics)
        return d_x, None, None, None, None, *d_factors


def _project(x: torch.Tensor, projections: Sequence[Projection], factors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[batch, n, channels] -> q, k and v."""
    pairs = zip(projections, _factors_of(projections, factors), strict=True)
    return [projection.forward(x, own) for projection, own in pairs]


def normed_self_attention(x: torch.Tensor, norm: nn.LayerNorm, attn: Attention) -> torch.Tensor:
    """Attention from norm(x) to norm(x) in the compiled kernel, without the projection of its result.

    Args:
        x: bf16 [batch, n, channels].
        norm: over the channels.
        attn: see :func:`can_fuse`.

    Returns:
        bf16 [batch, n, heads * d]; gradients go to ``x`` and to the factors of the adapters.
    """
    parts = [split(linear) for linear in (attn.to_q, attn.to_k, attn.to_v)]
    factors = [factor for _, own in parts for factor in own]
    out: torch.Tensor = _NormedSelfAttention.apply(  # type: ignore[no-untyped-call]
        x, norm, attn.heads, attn.scale, [projection for projection, _ in parts], *factors
    )
    return out


def can_fuse(attn: Attention) -> bool:
    """Whether :func:`normed_self_attention` can do it: its projections are frozen, each with or without an adapter."""
    return all(is_fusable(linear) for linear in (attn.to_q, attn.to_k, attn.to_v))


class BlockwiseProcessor:
    """diffusers' attention processor with the attention of this module; for UNets without masks, norms or added keys.

    Args:
        kernel: use the compiled one of :mod:`sdtune.ops.kernels`, which is for bf16.
    """

    def __init__(self, *, kernel: bool = False) -> None:
        if kernel:
            kernels.check()
        self._kernel = kernel

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[batch, n, channels], and [batch, m, dim] for cross-attention -> [batch, n, channels]."""
        if attention_mask is not None:
            raise NotImplementedError("the UNet of Stable Diffusion uses no mask")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if self._kernel:
            out, _ = kernels.attention_forward(q, k, v, attn.heads, attn.scale)
        else:
            q, k, v = (attn.head_to_batch_dim(x) for x in (q, k, v))
            out = attn.batch_to_head_dim(attention(q, k, v, attn.scale))
        projected: torch.Tensor = attn.to_out[0](out)
        return projected
