"""3x3 convolutions with fixed filters by Winograd's minimal filtering: 16 multiplications where the sum takes 36.

A 2x2 tile of the result depends on a 4x4 tile of the image. Both are transformed to a basis in which the convolution is
one multiplication at each of the 16 positions: F(2x2, 3x3) of Lavin and Gray, arXiv 1509.09308. Over all tiles and
channels these are batched matrix multiplications; the transforms are sums of neighbors. The filters are transformed
once. The backward pass uses the same transformed filters: flipping a filter swaps the first and the last row of its
transform.

In an image that was just doubled in size, two of four neighbors are equal. One row and one column of the transform then
vanish, and 9 multiplications remain.

In float32 the result differs from the direct sum's in the last digits. In bf16 the transforms are rounded too: with the
embedded model's weights, the gradient of a whole UNet is 1.7% off the float32 one instead of 1.5%.
"""

from typing import Any

import torch
from torch.nn import functional as F

from sdtune.ops.kernels.elementwise import winograd_image, winograd_products

TILES = 512
"""Tiles of the image at a time: half an image of 64 x 64. As fast as the whole image, with half the memory."""
BASIS = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
"""G of the paper: transforms a filter of 3 to 4 numbers."""
DOUBLED_BASIS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
"""The same for a doubled image: without the row that vanishes, and with the factor 2 of the second one."""
FORWARD, BACKWARD = (0, 1, 2, 3), (3, 1, 2, 0)
"""For each row of the transformed image: the row of the transformed filters that it is multiplied by."""


def transform_filters(weight: torch.Tensor, *, doubled: bool = False) -> torch.Tensor:
    """The filters in Winograd's basis.

    Args:
        weight: [out, in, 3, 3].
        doubled: for an image that is doubled in size by repeating its pixels.

    Returns:
        [n, n, in, out] of the same type, by row and column; n is 4, or 3 for a doubled image.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    basis = (DOUBLED_BASIS if doubled else BASIS).to(wide)
    return torch.einsum("ay,bx,oiyx->abio", basis, basis, weight.to(wide)).to(weight.dtype).contiguous()


def _every_second(x: torch.Tensor, dim: int, first: int) -> torch.Tensor:
    """Of 2 t + 2 positions along ``dim`` every second one from ``first`` on, t of them: one position of each tile."""
    stop = first + x.shape[dim] - 3
    return x[(slice(None),) * dim + (slice(first, stop, 2),)]


def _transform_input_along(x: torch.Tensor, dim: int, out: torch.Tensor, slots: tuple[int, ...]) -> None:
    """B^T of the paper: of tiles (a, b, c, d) that overlap by two positions along ``dim``, to out[slot] each."""
    a, b, c, d = (_every_second(x, dim, first) for first in range(4))
    torch.sub(a, c, out=out[slots[0]])
    torch.add(b, c, out=out[slots[1]])
    torch.sub(c, b, out=out[slots[2]])
    torch.sub(b, d, out=out[slots[3]])


def _transform_input(padded: torch.Tensor, slots: tuple[int, ...]) -> torch.Tensor:
    """[b, h + 2, w + 2, c] -> [4 (rows), 4 (columns), b * h / 2 * w / 2, c]."""
    b, h, w, c = padded.shape
    by_rows = padded.new_empty(4, b, h // 2 - 1, w, c)
    _transform_input_along(padded, 1, by_rows, slots)
    out = padded.new_empty(4, 4, b, h // 2 - 1, w // 2 - 1, c)
    _transform_input_along(by_rows, 3, out.transpose(0, 1), slots)
    return out.flatten(2, 4)


def _transform_output_along(parts: list[torch.Tensor], first: torch.Tensor, second: torch.Tensor) -> None:
    """A^T of the paper: four rows become the two positions of a tile."""
    torch.add(parts[0], parts[1], out=first).add_(parts[2])
    torch.sub(parts[1], parts[2], out=second).sub_(parts[3])


def _transform_output(parts: torch.Tensor, slots: tuple[int, ...], out: torch.Tensor) -> None:
    """[4, 4, b * h / 2 * w / 2, c] -> ``out``, [b, h, w, c]."""
    b, h, w, c = out.shape
    parts = parts.view(4, 4, b, h // 2, w // 2, c)
    by_rows = parts.new_empty(2, *parts.shape[1:])
    _transform_output_along([parts[slot] for slot in slots], by_rows[0], by_rows[1])
    pixels = out.view(b, h // 2, 2, w // 2, 2, c)
    for i in (0, 1):
        _transform_output_along([by_rows[i, slot] for slot in slots], pixels[:, :, i, :, 0], pixels[:, :, i, :, 1])


def _multiply(x: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """[n, n, tiles, in] and [n, n, in, out] -> [n, n, tiles, out]."""
    out = torch.bmm(x.flatten(0, 1), filters.flatten(0, 1))
    return out.view(*filters.shape[:2], *out.shape[1:])


def _convolve(
    x: torch.Tensor, filters: torch.Tensor, slots: tuple[int, ...], bias: torch.Tensor | None = None
) -> torch.Tensor:
    """[b, in, h, w] and [4, 4, in, out] -> [b, out, h, w], channels last in memory."""
    b, _, h, w = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # no copy but the padding: channels are last in memory
    out = x.new_empty(b, h, w, filters.shape[-1])
    rows = 2 * max(1, TILES // (b * w // 2))
    for top in range(0, h, rows):
        parts = _multiply(_transform_input(padded[:, top : top + rows + 2], slots), filters)
        if bias is not None:
            parts[1, 1] += bias  # the output transform adds it to each position of the tile, once
        _transform_output(parts, slots, out[:, top : top + rows])
    return out.permute(0, 3, 1, 2)


def _convolve_with_kernel(
    x: torch.Tensor, filters: torch.Tensor, slots: tuple[int, ...], bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The same in bf16 with compiled transforms, which round once, where torch's operators round after each sum."""
    image = x.permute(0, 2, 3, 1).contiguous()
    b, h, w, _ = image.shape
    out = image.new_empty(b, h, w, filters.shape[-1])
    rows = max(1, TILES // (b * w // 2))
    for first in range(0, h // 2, rows):
        count = min(rows, h // 2 - first)
        products = _multiply(winograd_image(image, first, count, slots), filters)
        winograd_products(products, bias, first, count, slots, out)
    return out.permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None, kernel: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(filters)
        ctx.convolve = _convolve_with_kernel if kernel else _convolve
        out: torch.Tensor = ctx.convolve(x, filters, FORWARD, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (filters,), [d_out] = ctx.saved_tensors, d_outs
        return ctx.convolve(d_out, filters.transpose(2, 3), BACKWARD), None, None, None


def _difference_along(x: torch.Tensor, dim: int, out: torch.Tensor) -> None:
    """Of t + 2 positions along ``dim``: what remains of B^T when the tiles are (a, b, b, c)."""
    a, b, c = (x.narrow(dim, first, x.shape[dim] - 2) for first in range(3))
    torch.sub(a, b, out=out[0])
    out[1].copy_(b)
    torch.sub(b, c, out=out[2])


def _sum_differences_along(parts: torch.Tensor, dim: int, out: torch.Tensor) -> None:
    """The transpose of :func:`_difference_along`, without the positions outside of the image."""
    torch.sub(parts[1], parts[0], out=out).add_(parts[2])
    last = out.shape[dim] - 1
    out.narrow(dim, 0, last).add_(parts[0].narrow(dim, 1, last))
    out.narrow(dim, 1, last).sub_(parts[2].narrow(dim, 0, last))


class _DoubledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(filters)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        b, h, w, c = (len(x), x.shape[2], x.shape[3], x.shape[1])
        by_rows = x.new_empty(3, b, h, w + 2, c)
        _difference_along(padded, 1, by_rows)
        image = x.new_empty(3, 3, b, h, w, c)
        _difference_along(by_rows, 3, image.transpose(0, 1))
        parts = _multiply(image.flatten(2, 4), filters).view(3, 3, b, h, w, -1)
        if bias is not None:
            parts[1, 1] += bias
        out_by_rows = parts.new_empty(2, *parts.shape[1:])
        torch.add(parts[0], parts[1], out=out_by_rows[0])
        torch.sub(parts[1], parts[2], out=out_by_rows[1])
        out = parts.new_empty(b, h, 2, w, 2, parts.shape[-1])
        for i in (0, 1):
            torch.add(out_by_rows[i, 0], out_by_rows[i, 1], out=out[:, :, i, :, 0])
            torch.sub(out_by_rows[i, 1], out_by_rows[i, 2], out=out[:, :, i, :, 1])
        return out.view(b, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (filters,), [d_out] = ctx.saved_tensors, d_outs
        b, c, h, w = d_out.shape
        pixels = d_out.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c)
        d_by_rows = d_out.new_empty(2, 3, b, h // 2, w // 2, c)
        for i in (0, 1):
            first, second = pixels[:, :, i, :, 0], pixels[:, :, i, :, 1]
            d_by_rows[i, 0].copy_(first)
            torch.add(first, second, out=d_by_rows[i, 1])
            torch.neg(second, out=d_by_rows[i, 2])
        parts = d_out.new_empty(3, *d_by_rows.shape[1:])
        parts[0].copy_(d_by_rows[0])
        torch.add(d_by_rows[0], d_by_rows[1], out=parts[1])
        torch.neg(d_by_rows[1], out=parts[2])
        image = _multiply(parts.flatten(2, 4), filters.transpose(2, 3)).view(3, 3, b, h // 2, w // 2, -1)
        by_rows = image.new_empty(3, *image.shape[2:])
        _sum_differences_along(image.transpose(0, 1), 3, by_rows)
        d_x = image.new_empty(image.shape[2:])
        _sum_differences_along(by_rows, 1, d_x)
        return d_x.permute(0, 3, 1, 2), None, None


def convolve(
    x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None, *, kernel: bool = False
) -> torch.Tensor:
    """``conv2d(x, weight, bias, padding=1)``, or for [3, 3, in, out] ``filters`` that of ``x`` doubled in size.

    Args:
        x: [b, in, h, w], channels last in memory; h and w even, unless the image is doubled.
        filters: :func:`transform_filters` of the weight [out, in, 3, 3].
        bias: [out] or None.
        kernel: let the compiled kernels transform tiles; for bf16, and not for a doubled image.

    Returns:
        [b, out, h, w] or [b, out, 2 h, 2 w], channels last; a gradient goes to ``x`` only.
    """
    out: torch.Tensor
    if len(filters) == 4:
        out = _Convolution.apply(x, filters, bias, kernel)  # type: ignore[no-untyped-call]
    else:
        out = _DoubledConvolution.apply(x, filters, bias)  # type: ignore[no-untyped-call]
    return out
