"""Projections with a learned product of low rank beside frozen weights: x W^T + bias + scaling (x A^T) B^T.

The frozen weights and all matrix multiplications have the type of the network; A and B are learned in float32. What a
frozen operation saves for the backward pass, its input, is all that the gradients of A and B need too: x A^T is
recomputed. So an adapter costs almost no memory, and few FLOPs.

Nothing here knows a library of adapters: a layer that is an :class:`AdaptedLinear` is recognized by the fused
operations of this package.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_STREAM = 5
"""Key of the random numbers of dropout."""


class Dropout:
    """Which inputs the adapters of a run do not see. It depends on the sample's number and the layer's only.

    Args:
        seed: of the run.
        share: of the inputs.
    """

    def __init__(self, seed: int, share: float) -> None:
        self._seed, self._share = seed, share
        self.samples: Sequence[int] | None = None
        """Numbers of the samples of the batch; None: everything is seen, as in validation. A backward pass
        that recomputes reads them again, so it has to come before they change."""

    @property
    def active(self) -> bool:
        """Whether it has an effect on the batch."""
        return self._share > 0 and self.samples is not None

    def __call__(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """X [batch, n, channels] with a share of its numbers replaced by 0, and the others scaled up."""
        assert self.samples is not None
        masks = []
        for number in self.samples:
            # as in sdtune.data.samples.Sampler, whose streams are 1 and 2
            rng = np.random.Generator(np.random.Philox(key=[self._seed, _STREAM], counter=[0, layer, number, 0]))
            masks.append(torch.from_numpy(rng.random(tuple(x.shape[1:]), dtype=np.float32) >= self._share))
        return x * torch.stack(masks) / (1 - self._share)


class AdaptedLinear(nn.Module):
    """Base of layers that compute a frozen projection with a product of low rank beside it."""

    base_layer: nn.Linear
    """The frozen projection."""
    dropout: Dropout
    """Shared by all layers of a run."""
    number: int
    """The layer's, for its dropout."""

    def factors(self) -> tuple[nn.Parameter, nn.Parameter, float]:
        """A [rank, in] and B [out, rank], both float32, and the scaling of their product."""
        raise NotImplementedError


Factors = tuple[torch.Tensor, ...]
"""A and B of one projection; empty where it is only frozen."""


class Projection(NamedTuple):
    """A projection as an autograd function uses it; not a tensor itself, so gradients are the function's own affair."""

    weight: torch.Tensor
    """Frozen [out, in]."""
    bias: torch.Tensor | None
    """Frozen [out]."""
    scaling: float
    """Of the learned product; 0: there is none, the projection is only frozen."""

    def rounded(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A, and B with the scaling, rounded to the type of the frozen weights."""
        return a.to(self.weight.dtype), (b * self.scaling).to(self.weight.dtype)

    def forward(self, x: torch.Tensor, factors: Factors) -> torch.Tensor:
        """Project x [..., in] -> [..., out]; ``factors`` are A and B, or nothing where it is only frozen."""
        out = F.linear(x, self.weight, self.bias)
        if factors:
            a, b = self.rounded(*factors)
            out.view(-1, out.shape[-1]).addmm_(x.flatten(0, -2) @ a.t(), b.t())
        return out

    def backward(
        self, x: torch.Tensor, d_out: torch.Tensor, factors: Factors, d_x: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Gradients of A and B, in their types; none where it is only frozen.

        Args:
            x: [rows, in].
            d_out: [rows, out].
            factors: as in :meth:`forward`.
            d_x: [rows, in], to which the gradient of x through A and B is added; None where it is not needed.
        """
        if not factors:
            return ()
        a, b = self.rounded(*factors)
        narrow = d_out @ b  # [rows, rank]
        if d_x is not None:
            d_x.addmm_(narrow, a)
        # wide and flat, [rank, rows] x [rows, out], runs faster than tall and thin
        d_b = ((x @ a.t()).t() @ d_out).t()
        return (narrow.t() @ x).to(factors[0].dtype), d_b.to(factors[1].dtype) * self.scaling


def is_fusable(linear: nn.Module) -> bool:
    """Whether :func:`split` says all: a plain frozen projection, or one with an adapter that sees all of its input."""
    if isinstance(linear, AdaptedLinear):
        return not linear.dropout.active
    return type(linear) is nn.Linear and not linear.weight.requires_grad


def split(linear: nn.Module) -> tuple[Projection, tuple[nn.Parameter, ...]]:
    """A projection, and its learned factors; none where it is only frozen."""
    if isinstance(linear, AdaptedLinear):
        a, b, scaling = linear.factors()
        return Projection(linear.base_layer.weight, linear.base_layer.bias, scaling), (a, b)
    assert isinstance(linear, nn.Linear)
    return Projection(linear.weight, linear.bias, 0.0), ()


class _Adapted(torch.autograd.Function):
    """A projection with an adapter. Saves x and the factors."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, projection: Projection, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.projection = projection
        return projection.forward(x, (a, b))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        d_out = d_outs[0].flatten(0, -2)
        d_x = d_out @ ctx.projection.weight if ctx.needs_input_grad[0] else None
        d_a, d_b = ctx.projection.backward(x.flatten(0, -2), d_out, tuple(factors), d_x)
        return None if d_x is None else d_x.view(x.shape), None, d_a, d_b


def adapted_projection(x: torch.Tensor, linear: AdaptedLinear) -> torch.Tensor:
    """Project x [..., in] -> [..., out] with the layer's adapter; gradients go to x and to the adapter's factors."""
    projection, factors = split(linear)
    x = x.to(projection.weight.dtype)
    if linear.dropout.active:
        a, b = projection.rounded(*factors)
        return F.linear(x, projection.weight, projection.bias) + linear.dropout(x, linear.number) @ a.t() @ b.t()
    out: torch.Tensor = _Adapted.apply(x, projection, *factors)  # type: ignore[no-untyped-call]
    return out
