"""Compiled kernels for what surrounds matrix multiplications in bf16.

Gated GELU, group normalization with or without SiLU, and the transforms of Winograd's convolution. They are operators
of torch, from the same libraries as :mod:`sdtune.ops.kernels`. Gradients are the affair of those who call them: an
operator without them costs 2 microseconds a call, with them 9, and a step makes hundreds of calls.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdtune.ops.kernels import _load

_library: Any = torch.library.Library("sdtune", "FRAGMENT")  # type: ignore[no-untyped-call]


def _operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function an operator of torch; ``fake`` returns tensors of the same shapes, without numbers."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _library.define(schema)
        name = schema.partition("(")[0]
        _library.impl(name, function, "CPU")
        torch.library.register_fake(f"sdtune::{name}", fake, lib=_library)
        operator: Callable[..., Any] = getattr(torch.ops.sdtune, name).default
        return operator

    return register


def _check(*tensors: Tensor) -> None:
    """The C code checks nothing."""
    if any(x.dtype != torch.bfloat16 or not x.is_contiguous() or not x.numel() for x in tensors):
        told = [(x.dtype, tuple(x.shape), tuple(x.stride())) for x in tensors]
        raise ValueError(f"bf16, contiguous and not empty, not {told}")


def _same_shapes(*shapes: Sequence[int]) -> None:
    if any(tuple(shape) != tuple(shapes[0]) for shape in shapes):
        raise ValueError(f"these shapes do not fit together: {[tuple(shape) for shape in shapes]}")


# --- gated GELU ------------------------------------------------------------------------------------------------------


@_operator("gated_gelu(Tensor both, Tensor(a!) out) -> ()", lambda both, out: None)
def gated_gelu(both: Tensor, out: Tensor) -> None:
    """``out[:] = a * gelu(b)``.

    Args:
        both: bf16 [rows, 2 * width]: a and b.
        out: bf16 [rows, width].
    """
    _check(both, out)
    rows, width = out.shape
    _same_shapes(both.shape, (rows, 2 * width))
    _load().sdtune_gated_gelu_forward(both.data_ptr(), rows, width, torch.get_num_threads(), out.data_ptr())


@_operator("gated_gelu_backward(Tensor both, Tensor d_out) -> Tensor", lambda both, d_out: torch.empty_like(both))
def gated_gelu_backward(both: Tensor, d_out: Tensor) -> Tensor:
    """The gradient of :func:`gated_gelu` for ``both``."""
    _check(both, d_out)
    rows, width = d_out.shape
    _same_shapes(both.shape, (rows, 2 * width))
    d_both = torch.empty_like(both)
    _load().sdtune_gated_gelu_backward(
        both.data_ptr(), d_out.data_ptr(), rows, width, torch.get_num_threads(), d_both.data_ptr()
    )
    return d_both


# --- group normalization ---------------------------------------------------------------------------------------------


def _check_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, *like_x: Tensor) -> tuple[int, int, int, int]:
    """Batch, pixels, channels, groups."""
    _check(x, weight, bias, *like_x)
    batch, n, channels = x.shape
    _same_shapes(x.shape, *(other.shape for other in like_x))
    _same_shapes((channels,), weight.shape, bias.shape)
    if groups < 1 or channels % groups:
        raise ValueError(f"no {groups} groups of {channels} channels")
    return batch, n, channels, groups


def _no_statistics(x: Tensor, groups: int) -> Tensor:
    return x.new_empty(len(x), groups, 2, dtype=torch.float32)


@_operator(
    "group_norm(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool silu) -> (Tensor, Tensor)",
    lambda x, weight, bias, groups, *_: (torch.empty_like(x), _no_statistics(x, groups)),
)
def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor]:
    """Group normalization of channels that are last in memory.

    Args:
        x: bf16 [batch, pixels, channels].
        weight: bf16 [channels].
        bias: bf16 [channels].
        groups: of channels.
        eps: added to the variance.
        silu: whether SiLU follows.

    Returns:
        The result, of the shape of ``x``; and what the backward pass needs, float32 [batch, groups, 2].

    Raises:
        MemoryError: a MB cannot be allocated.
    """
    shape = _check_norm(x, weight, bias, groups)
    out, statistics = torch.empty_like(x), _no_statistics(x, groups)
    if _load().sdtune_group_norm_forward(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), *shape, eps, silu, torch.get_num_threads(),
        out.data_ptr(), statistics.data_ptr(),
    ):  # fmt: skip
        raise MemoryError
    return out, statistics


@_operator(
    "group_norm_backward(Tensor x, Tensor weight, Tensor bias, Tensor statistics, Tensor d_out, int groups, bool silu) "
    "-> Tensor",
    lambda x, *_: torch.empty_like(x),
)
def group_norm_backward(
    x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, d_out: Tensor, groups: int, silu: bool
) -> Tensor:
    """The gradient of :func:`group_norm` for ``x``; ``d_out`` is that of its result."""
    shape = _check_norm(x, weight, bias, groups, d_out)
    if statistics.dtype != torch.float32 or not statistics.is_contiguous():
        raise ValueError(f"statistics of another pass: {statistics.dtype}")
    _same_shapes(statistics.shape, (shape[0], groups, 2))
    d_x = torch.empty_like(x)
    if _load().sdtune_group_norm_backward(
        *(tensor.data_ptr() for tensor in (x, weight, bias, d_out, statistics)), *shape, silu,
        torch.get_num_threads(), d_x.data_ptr(),
    ):  # fmt: skip
        raise MemoryError
    return d_x


# --- transforms of Winograd's convolution ----------------------------------------------------------------------------


def _slots(slots: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    if sorted(slots) != [0, 1, 2, 3]:
        raise ValueError(f"{slots} is no order of four rows")
    return (ctypes.c_int64 * 4)(*slots)


def _check_tiles(image: Tensor, first: int, rows: int) -> None:
    _, h, w, _ = image.shape
    if h % 2 or w % 2 or first < 0 or rows < 1 or 2 * (first + rows) > h:
        raise ValueError(f"no {rows} rows of tiles from {first} on in {tuple(image.shape)}")


def _no_products(image: Tensor, rows: int) -> Tensor:
    batch, _, w, channels = image.shape
    return image.new_empty(4, 4, batch * rows * (w // 2), channels)


@_operator(
    "winograd_image(Tensor image, int first, int rows, int[] slots) -> Tensor",
    lambda image, first, rows, slots: _no_products(image, rows),
)
def winograd_image(image: Tensor, first: int, rows: int, slots: Sequence[int]) -> Tensor:
    """Transform tiles of an image, which is 0 outside, to the basis of the filters.

    Args:
        image: bf16 [batch, h, w, channels]; h and w are even.
        first: row of 2x2 tiles to begin with.
        rows: of tiles.
        slots: where each row and column of the basis goes.

    Returns:
        bf16 [4, 4, batch * rows * w / 2, channels].

    Raises:
        MemoryError: a pixel cannot be allocated.
    """
    _check(image)
    _check_tiles(image, first, rows)
    batch, h, w, channels = image.shape
    out = _no_products(image, rows)
    if _load().sdtune_winograd_image(
        image.data_ptr(), batch, h, w, channels, first, rows, _slots(slots), torch.get_num_threads(), out.data_ptr()
    ):
        raise MemoryError
    return out


@_operator(
    "winograd_products(Tensor products, Tensor? bias, int first, int rows, int[] slots, Tensor(a!) image) -> ()",
    lambda *_: None,
)
def winograd_products(
    products: Tensor, bias: Tensor | None, first: int, rows: int, slots: Sequence[int], image: Tensor
) -> None:
    """Transform products in the basis of the filters to tiles of an image, and add a bias.

    Args:
        products: bf16 [4, 4, batch * rows * w / 2, channels].
        bias: bf16 [channels] or None.
        first: row of 2x2 tiles to begin with.
        rows: of tiles.
        slots: where each row and column of the basis is.
        image: bf16 [batch, h, w, channels], of which these rows of tiles are written.
    """
    _check(products, image, *([] if bias is None else [bias]))
    _check_tiles(image, first, rows)
    batch, h, w, channels = image.shape
    _same_shapes(products.shape, (4, 4, batch * rows * (w // 2), channels))
    if bias is not None:
        _same_shapes(bias.shape, (channels,))
    _load().sdtune_winograd_products(
        products.data_ptr(), None if bias is None else bias.data_ptr(), batch, h, w, channels, first, rows,
        _slots(slots), torch.get_num_threads(), image.data_ptr(),
    )  # fmt: skip
