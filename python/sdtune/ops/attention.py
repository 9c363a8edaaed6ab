"""Attention over long sequences: in bf16 by one kernel, elsewhere in matrix products that fit the cache.

At 512 pixels the UNet's first blocks attend from 4,096 places to 4,096 places with heads of 40 numbers, a third of a
training step. torch's flash kernel for CPUs works on tiles so small that its products stay far below the rate of a
plain one. In bf16, on processors that have instructions for it, all of it is done by :mod:`sdtune.ops.kernels`.
Elsewhere a block of 256 queries for every thread against the 4,096 keys of one head goes through the same oneDNN
products as everything else; in bf16 it would be 2 MB, what a core's cache holds. As in flash attention the backward
pass computes the blocks again instead of keeping them (Dao et al., arXiv 2205.14135; blocks of whole rows do without
its online softmax).

``python/bench/attention.py`` measures all three.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sdtune.ops import kernels

BLOCK = 2**20
"""Weights, queries x keys, at a time and thread: 2 MB in bf16, what a core's own cache holds."""
SMALL = 256
"""Up to so many keys, as in cross-attention, the forward pass is made again, not kept; all heads are one block."""


def _blocks(q: torch.Tensor, k: torch.Tensor) -> list[slice]:
    """The queries in turn, so many that their weights make one block."""
    rows = max(1, BLOCK * torch.get_num_threads() // k.shape[1])
    return [slice(first, first + rows) for first in range(0, q.shape[1], rows)]


def _whole_vectors(x: torch.Tensor) -> torch.Tensor:
    """[..., d] with d filled up by zeros to a multiple of 16: products with d columns then fill whole vectors."""
    return F.pad(x, (0, -x.shape[-1] % 16)).contiguous()


class _Blockwise(torch.autograd.Function):
    """softmax(q k^T) v of [heads, n, d], [heads, m, d], [heads, m, d]; q is scaled already."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys = k.transpose(1, 2).contiguous()  # [heads, d, m]
        ctx.save_for_backward(q, keys, v)
        values = _whole_vectors(v)
        out = q.new_empty(*q.shape[:2], values.shape[-1])
        for head in range(len(q)):
            for block in _blocks(q, k):
                weights = q[head, block] @ keys[head]
                torch.softmax(weights, -1, out=weights)
                torch.mm(weights, values[head], out=out[head, block])
        return out[..., : v.shape[-1]]

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, keys, v = ctx.saved_tensors
        d_out = d_outs[0].contiguous()
        values = v.transpose(1, 2).contiguous()  # [heads, d, m]
        k = _whole_vectors(keys.transpose(1, 2))  # [heads, m, d or a little more]
        d_q = q.new_empty(*q.shape[:2], k.shape[-1])
        # blocks are summed in float32 at least
        d_keys = torch.zeros_like(keys, dtype=torch.promote_types(q.dtype, torch.float32))
        d_values = torch.zeros_like(d_keys)
        for head in range(len(q)):
            for block in _blocks(q, v):
                its_q, its_d = q[head, block], d_out[head, block]
                weights = its_q @ keys[head]
                torch.softmax(weights, -1, out=weights)
                # wide and flat products, [d, rows] x [rows, m], run faster than tall and thin ones
                d_values[head] += its_d.t() @ weights
                d_logits = torch._softmax_backward_data(its_d @ values[head], weights, -1, weights.dtype)
                torch.mm(d_logits, k[head], out=d_q[head, block])
                d_keys[head] += its_q.t() @ d_logits
        d_k, d_v = (x.transpose(1, 2).to(q.dtype) for x in (d_keys, d_values))
        return d_q[..., : q.shape[-1]], d_k, d_v


class _Recomputed(torch.autograd.Function):
    """The same for few keys, as in cross-attention: all heads at once, and the weights are a few MB to make again."""

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
    # The same number added to all logits of a query changes nothing, so keys may be taken about their mean: the logits
    # get smaller, and rounding them to bf16 costs less.
    k = k - k.mean(1, keepdim=True)
    function = _Recomputed if k.shape[1] <= SMALL else _Blockwise
    out: torch.Tensor = function.apply(q.contiguous(), k, v.contiguous())  # type: ignore[no-untyped-call]
    return out


class _InOneKernel(torch.autograd.Function):
    """The same in one kernel, of [batch, n, heads * d], [batch, m, heads * d], [batch, m, heads * d]."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
        out, log_sums = kernels.attention_forward(q, k, v, heads, scale)
        again = k.shape[1] <= SMALL  # 26 MB less at 512 pixels, for one more pass that is short
        ctx.save_for_backward(q, k, v, None if again else out, None if again else log_sums)
        ctx.arguments = heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, log_sums = ctx.saved_tensors
        if out is None:
            out, log_sums = kernels.attention_forward(q, k, v, *ctx.arguments)
        return *kernels.attention_backward(q, k, v, out, d_outs[0], log_sums, *ctx.arguments), None, None


class _WithProjections(torch.autograd.Function):
    """The same of one x [batch, n, channels] and weights and biases of its projections to q, k and v, which are frozen.

    Keeps x, and makes q, k and v again, three times as large: at 512 pixels that is 30 MB less when most is held, for
    2 % more products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, heads: int, scale: float, *projections: tuple[torch.Tensor, torch.Tensor | None]
    ) -> torch.Tensor:
        q, k, v = (F.linear(x, *projection) for projection in projections)
        out, log_sums = kernels.attention_forward(q, k, v, heads, scale)
        ctx.save_for_backward(x, out, log_sums)
        ctx.projections, ctx.arguments = projections, (heads, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, out, log_sums = ctx.saved_tensors
        q, k, v = (F.linear(x, *projection) for projection in ctx.projections)
        gradients = kernels.attention_backward(q, k, v, out, d_outs[0], log_sums, *ctx.arguments)
        d_x = torch.zeros_like(x.flatten(0, 1))
        for gradient, (weight, _) in zip(gradients, ctx.projections, strict=True):
            d_x.addmm_(gradient.flatten(0, 1), weight)
        return d_x.view(x.shape), None, None, None, None, None


class BlockwiseProcessor:
    """diffusers' attention processor with the attention of this module; for UNets without masks, norms or added keys.

    Args:
        kernel: use that of :mod:`sdtune.ops.kernels`, which is for bf16.
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
        out: torch.Tensor
        if self._kernel and context is hidden_states:
            projections = [(linear.weight, linear.bias) for linear in (attn.to_q, attn.to_k, attn.to_v)]
            out = _WithProjections.apply(context, attn.heads, attn.scale, *projections)  # type: ignore[no-untyped-call]
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
            if self._kernel:
                out = _InOneKernel.apply(q, k, v, attn.heads, attn.scale)  # type: ignore[no-untyped-call]
            else:
                q, k, v = (attn.head_to_batch_dim(x) for x in (q, k, v))
                out = attn.batch_to_head_dim(attention(q, k, v, attn.scale))
        out = attn.to_out[0](out)
        return out
