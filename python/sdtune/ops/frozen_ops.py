"""Operations of a UNet whose weights never change: they keep less for the backward pass, and one computes less.

torch's convolution keeps its input for the gradient of its weights, which a frozen network never asks for; a gated GELU
keeps three tensors, and a normalization followed by SiLU two, where one tells all. Together that is a third of what a
step at 512 pixels holds. Convolutions over large images are Winograd's, :mod:`sdtune.ops.winograd`, with kernels that
were transformed beforehand.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from sdtune.ops.winograd import convolve, transform_kernels

WINOGRAD_PIXELS = 1024
"""Smallest image for Winograd's convolution; its kernels take 16 numbers for 9, and every pixel makes up for that."""
LARGE_KERNELS = 2**20
"""Weights of a convolution, from which on a small image's is one product."""
RECOMPUTED_CHANNELS = 640
"""A gated GELU of so many channels or less is made again for the backward pass: 4 % more products for 150 MB less."""
ROWS = 512
"""Places whose gated GELU is computed at a time: what its projection says of them is 5 MB at 640 channels in bf16."""
_OUTPUTS = (True, False, False)  # of the gradients of input, weight and bias, only the first


def is_3x3(convolution: nn.Conv2d) -> bool:
    """Whether it is the usual one, that leaves an image's size as it is."""
    window = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    return window == ((3, 3), (1, 1), (1, 1), (1, 1)) and convolution.groups == 1


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


def _patches(x: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w] -> [b * h * w, 9 * c]: what a 3x3 kernel sees at each place."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    b, h, w, c = padded.shape
    image, row, column, channel = padded.stride()
    seen = padded.as_strided((b, h - 2, w - 2, 3, 3, c), (image, row, column, row, column, channel))
    return seen.reshape(-1, 9 * c)


class _SmallConvolution(torch.autograd.Function):
    """3x3 with padding 1 as one product: for small images and large kernels, which oneDNN would copy at each call."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        matrix = weight.permute(0, 2, 3, 1).flatten(1)  # [out, 9 * in], as it lies in memory
        ctx.save_for_backward(matrix)
        b, _, h, w = x.shape
        return F.linear(_patches(x), matrix, bias).view(b, h, w, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (matrix,), [d_out] = ctx.saved_tensors, d_outs
        b, out, h, w = d_out.shape
        d_seen = (d_out.permute(0, 2, 3, 1).reshape(-1, out) @ matrix).view(b, h, w, 3, 3, -1)
        d_padded = d_seen.new_zeros(
            b, h + 2, w + 2, d_seen.shape[-1], dtype=torch.promote_types(d_out.dtype, torch.float32)
        )
        for i in range(3):
            for j in range(3):
                d_padded[:, i : i + h, j : j + w] += d_seen[:, :, :, i, j]
        return d_padded[:, 1:-1, 1:-1].to(d_out.dtype).permute(0, 3, 1, 2), None, None


def _blocks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[..., c] -> [ROWS, c] each, and what is left."""
    return torch.split(x.flatten(0, -2), ROWS)


def _normalized(x: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """And the means and deviations that its gradient takes."""
    return torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class _NormGatedGelu(torch.autograd.Function):
    """a * gelu(b) of (a, b) = norm(x) W^T + bias, which is eight times as large as x.

    A block of rows at a time: what lies between stays in the cache, and takes few MB. Keeps x, and (a, b) unless that
    is large and quickly made again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, norm: nn.LayerNorm, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        out, kept = x.new_empty(*x.shape[:-1], len(weight) // 2), []
        again = weight.shape[1] <= RECOMPUTED_CHANNELS
        for its_x, its_out in zip(_blocks(x), _blocks(out), strict=True):
            both = F.linear(_normalized(its_x, norm)[0], weight, bias)
            a, b = both.chunk(2, dim=-1)
            torch.ops.aten.gelu.out(b, out=its_out).mul_(a)
            if not again:
                kept.append(both)
        ctx.norm = norm
        ctx.save_for_backward(x, weight, bias, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *d_outs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, *kept = ctx.saved_tensors
        norm: nn.LayerNorm = ctx.norm
        d_x = []
        for i, (its_x, its_d_out) in enumerate(zip(_blocks(x), _blocks(d_outs[0]), strict=True)):
            normed, *sums = _normalized(its_x, norm)
            both = kept[i] if kept else F.linear(normed, weight, bias)
            a, b = both.chunk(2, dim=-1)
            d_both = torch.empty_like(both)
            d_a, d_b = d_both.chunk(2, dim=-1)
            torch.ops.aten.gelu.out(b, out=d_a).mul_(its_d_out)
            torch.mul(its_d_out, a, out=d_b)
            torch.ops.aten.gelu_backward.grad_input(d_b, b, grad_input=d_b)
            its_d_x, _, _ = torch.ops.aten.native_layer_norm_backward(
                d_both @ weight, its_x, norm.normalized_shape, *sums, norm.weight, norm.bias, _OUTPUTS
            )
            d_x.append(its_d_x)
        return torch.cat(d_x).view(x.shape), None, None, None


class _FrozenConv2d(nn.Conv2d):
    kernels: torch.Tensor | None = None
    """For Winograd's convolution, [4, 4, in, out], or [3, 3, in, out] where the image is doubled before."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.kernels is not None and len(self.kernels) == 4 and input.shape[2] % 2 == input.shape[3] % 2 == 0:
            return convolve(input, self.kernels, self.bias)
        if self.weight.numel() >= LARGE_KERNELS and is_3x3(self) and input[0, 0].numel() < WINOGRAD_PIXELS:
            product: torch.Tensor = _SmallConvolution.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias
            )
            return product
        out: torch.Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return out


class _FrozenGEGLU(GEGLU):  # type: ignore[misc]
    norm: tuple[nn.LayerNorm]
    """What is left to it; in a tuple, or it would be a module of this one."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _NormGatedGelu.apply(  # type: ignore[no-untyped-call]
            hidden_states, *self.norm, self.proj.weight, self.proj.bias
        )
        return out


class _LeftToGEGLU(nn.LayerNorm):
    """Of a transformer block, the normalization before the gated GELU, which does it: so nobody keeps its result."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input


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


class _FrozenUpsample2D(Upsample2D):  # type: ignore[misc]
    def forward(self, hidden_states: torch.Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        if output_size is not None or self.conv.kernels is None:
            out: torch.Tensor = super().forward(hidden_states, output_size, *args, **kwargs)
            return out
        return convolve(hidden_states, self.conv.kernels, self.conv.bias)


def _doubles_then_convolves(up: Any) -> bool:
    if up.name != "conv" or up.norm is not None or not up.interpolate or not isinstance(up.conv, nn.Conv2d):
        return False
    return up.conv.kernel_size == (3, 3) and up.conv.padding == (1, 1)


def _normalizes_then_gates(block: Any) -> bool:
    return block.norm_type == "layer_norm" and type(block.norm3) is nn.LayerNorm and type(block.ff.net[0]) is GEGLU


def _leave_norm_to_geglu(block: Any) -> None:
    gated = block.ff.net[0]
    gated.__class__, gated.norm = _FrozenGEGLU, (block.norm3,)
    block.norm3.__class__ = _LeftToGEGLU


def use_frozen_ops(network: nn.Module) -> None:
    """Let the modules of a frozen ``network`` that can, keep less for the backward pass.

    The state dict stays the same, for only the modules' classes change; the result too, but for the rounding of sums.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = _FrozenConv2d
        elif type(module) is BasicTransformerBlock and _normalizes_then_gates(module):
            _leave_norm_to_geglu(module)
        elif (
            type(module) is ResnetBlock2D
            and isinstance(module.nonlinearity, nn.SiLU)
            and module.time_embedding_norm == "default"  # each normalization is followed by the nonlinearity
        ):
            module.norm1.__class__ = module.norm2.__class__ = _FrozenNormSilu
            module.nonlinearity = _SiluOfTime()
        elif type(module) is Upsample2D and _doubles_then_convolves(module):
            module.__class__ = _FrozenUpsample2D


def winograd_kernels(unet: UNet2DConditionModel, side: int, pixels: int = WINOGRAD_PIXELS) -> dict[str, torch.Tensor]:
    """Transformed kernels of those convolutions of ``unet`` that are worth it, by the name of their module.

    Args:
        unet: with frozen operations.
        side: of its latents.
        pixels: that an image has to have.
    """
    last = len(unet.config.block_out_channels) - 1
    kernels: dict[str, torch.Tensor] = {}
    for name, module in unet.named_modules():
        if isinstance(module, _FrozenUpsample2D):  # 9 transformed kernels for 9 weights: they cost nothing
            kernels[f"{name}.conv"] = transform_kernels(module.conv.weight, doubled=True)
        elif (
            type(module) is _FrozenConv2d
            and f"{name.rpartition('.')[0]}.conv" not in kernels
            and is_3x3(module)
            and min(module.in_channels, module.out_channels) >= 64  # else the transforms are most of the work
        ):
            block, _, rest = name.partition(".")
            level = last if block == "mid_block" else 0
            if block in ("down_blocks", "up_blocks"):
                number = int(rest.partition(".")[0])
                level = number if block == "down_blocks" else last - number
            if (side >> level) ** 2 >= pixels:
                kernels[name] = transform_kernels(module.weight)
    return kernels


def use_winograd(unet: UNet2DConditionModel, kernels: dict[str, torch.Tensor]) -> None:
    """Let the convolutions named in ``kernels``, see :func:`winograd_kernels`, use them."""
    for name, tensor in kernels.items():
        unet.get_submodule(name).kernels = tensor
