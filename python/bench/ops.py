"""Each fused operation against plain torch and against torch's checkpoint, at the shapes of Stable Diffusion 1.5.

    python bench/ops.py [--rounds 5] [--resolution 512] [--only winograd]

A region is the part of the UNet that an operation replaces. Its shapes and how often a step computes it are recorded in
a forward pass on the meta device. For each shape, these take turns: the fused operation, the same region of plain
modules (with the compiled attention kernel, if there is one), and those in ``torch.utils.checkpoint``. Times are the
medians of a forward and a backward pass, multiplied by the number of such regions in a step. Memory is what the region
holds between the passes: the tensors that it allocated and that are still alive, and its input if it keeps that alive.
On a busy machine, ``OMP_NUM_THREADS=1 python bench/ops.py --cpu-time`` is steadier.

An operation stays if it saves 2% of a step's time or 50 MB, and neither alternative is better in both.
"""

import argparse
import functools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from contenders import say
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from sd15 import UNET
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdtune.host.processor import has_bf16
from sdtune.ops import kernels
from sdtune.ops.attention import normed_self_attention
from sdtune.ops.convolution import (
    MANY_WEIGHTS,
    SMALL_IMAGE,
    FrozenConv2d,
    WinogradConv2d,
    _Convolution,
    can_replace_upsampling,
    is_3x3,
)
from sdtune.ops.normalization import FrozenGroupNorm, norm_gated_gelu
from sdtune.ops.unet import optimize_unet
from sdtune.ops.winograd import convolve, transform_filters
from sdtune.ops.winograd_selection import KERNEL_PIXELS, WINOGRAD_CHANNELS, WINOGRAD_PIXELS

Call = Callable[[torch.Tensor], torch.Tensor]
Clock = Callable[[], float]
DTYPE = torch.bfloat16 if has_bf16() else torch.float32
KERNEL = DTYPE is torch.bfloat16 and kernels.usable()
"""Whether the fused operations use the compiled kernels."""


@dataclass(frozen=True)
class Region:
    """A region of the UNet at one shape."""

    operation: str
    """The fused operation."""
    shape: tuple[int, ...]
    """Shape of the input."""
    arguments: tuple[Any, ...]
    """What else tells one region from another: channels, strides, heads."""


def parameters(module: nn.Module) -> nn.Module:
    """``module`` with random frozen weights, channels last as in training."""
    module = module.to(DTYPE).requires_grad_(False).eval()
    return module.to(memory_format=torch.channels_last)


def of_convolution(region: Region) -> tuple[Call, Call]:
    """The fused operation, and the plain one."""
    channels, out, kernel, stride, padding = region.arguments
    plain = parameters(nn.Conv2d(channels, out, kernel, stride, padding))
    if region.operation.startswith("Winograd, doubled"):
        filters = transform_filters(plain.weight, doubled=True)
        return (
            lambda x: convolve(x, filters, plain.bias),
            lambda x: FrozenConv2d(plain)(F.interpolate(x, scale_factor=2.0)),
        )
    if region.operation.startswith("Winograd"):
        return WinogradConv2d(plain, transform_filters(plain.weight), kernel=KERNEL), FrozenConv2d(plain)
    if region.operation.startswith("small"):
        options = (plain.weight, plain.bias, plain.stride, plain.padding, plain.dilation, plain.groups)
        return FrozenConv2d(plain), lambda x: _Convolution.apply(x, *options)
    return FrozenConv2d(plain), plain


def of_gated_gelu(region: Region) -> tuple[Call, Call]:
    """The fused operation, and the plain one."""
    channels, width = region.arguments
    norm, linear = parameters(nn.LayerNorm(channels)), parameters(nn.Linear(channels, width))

    def plain(x: torch.Tensor) -> torch.Tensor:
        a, b = linear(norm(x)).chunk(2, dim=-1)
        return a * F.gelu(b)

    return functools.partial(norm_gated_gelu, norm=norm, projection=linear, kernel=KERNEL), plain


def of_group_norm(region: Region) -> tuple[Call, Call]:
    """The fused operation, and the plain one."""
    groups, eps, silu = region.arguments
    plain = parameters(nn.GroupNorm(groups, region.shape[1], eps))
    assert isinstance(plain, nn.GroupNorm)
    return functools.partial(FrozenGroupNorm(plain), silu=silu), lambda x: F.silu(plain(x)) if silu else plain(x)


def of_attention(region: Region) -> tuple[Call, Call]:
    """The fused operation, and the plain one, which saves the normalized input and the projections."""
    width, heads = region.arguments
    norm = parameters(nn.LayerNorm(region.shape[-1]))
    attn = parameters(Attention(region.shape[-1], heads=heads, dim_head=width // heads))
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(attn, Attention)

    def plain(x: torch.Tensor) -> torch.Tensor:
        x = norm(x)
        return kernels.attention_forward(attn.to_q(x), attn.to_k(x), attn.to_v(x), heads, attn.scale)[0]

    return functools.partial(normed_self_attention, norm=norm, attn=attn), plain


MAKERS = {
    "frozen convolution": of_convolution,
    "small convolution as one matrix multiplication": of_convolution,
    "Winograd": of_convolution,
    "Winograd, doubled": of_convolution,
    "norm and gated GELU": of_gated_gelu,
    "group norm": of_group_norm,
    "group norm and SiLU": of_group_norm,
    "self-attention, norm and projections recomputed": of_attention,
}


def regions_of(name: str, module: nn.Module, inputs: tuple[Any, ...], upsampled: set[str]) -> Iterator[Region]:
    """The regions that ``module`` is, or is the input of."""
    shape = tuple(inputs[0].shape)
    if isinstance(module, nn.Conv2d):
        geometry = (module.kernel_size, module.stride, module.padding)
        pixels, fewest = shape[2] * shape[3], min(module.in_channels, module.out_channels)
        if name in upsampled:
            operation, shape = "Winograd, doubled", (*shape[:2], shape[2] // 2, shape[3] // 2)
        elif (
            is_3x3(module) and pixels >= (KERNEL_PIXELS if KERNEL else WINOGRAD_PIXELS) and fewest >= WINOGRAD_CHANNELS
        ):
            operation = "Winograd"
        elif is_3x3(module) and pixels < SMALL_IMAGE and module.weight.numel() >= MANY_WEIGHTS:
            operation = "small convolution as one matrix multiplication"
        else:
            operation = "frozen convolution"
        yield Region(operation, shape, (module.in_channels, module.out_channels, *geometry))
    elif isinstance(module, nn.GroupNorm) and KERNEL:
        silu = ".resnets." in name
        operation = "group norm and SiLU" if silu else "group norm"
        yield Region(operation, shape, (module.num_groups, module.eps, silu))


def record(resolution: int) -> Counter[Region]:
    """All regions of a step, with their numbers."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**UNET).eval()
    found: Counter[Region] = Counter()
    upsampled = {f"{name}.conv" for name, module in unet.named_modules() if can_replace_upsampling(module)}
    tokens, dim = 77, unet.config.cross_attention_dim

    def see(name: str, module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = inputs[0] if inputs else options["hidden_states"]
        shape = tuple(x.shape)
        found.update(regions_of(name, module, (x,), upsampled))
        if isinstance(module, BasicTransformerBlock):
            found[Region("norm and gated GELU", shape, (shape[-1], module.ff.net[0].proj.out_features))] += 1
        elif isinstance(module, Attention) and kernels.usable() and options.get("encoder_hidden_states") is None:
            found[
                Region("self-attention, norm and projections recomputed", shape, (module.inner_dim, module.heads))
            ] += 1

    for name, module in unet.named_modules():
        module.register_forward_pre_hook(
            lambda m, i, o, name=name: see(name, m, i, o) if i or "hidden_states" in o else None, with_kwargs=True
        )
    side = resolution // 8
    like = {"device": "meta"}
    weights = {key: tensor.to("meta") for key, tensor in unet.state_dict().items()}
    inputs = (torch.empty(1, 4, side, side, **like), torch.empty(1, **like), torch.empty(1, tokens, dim, **like))
    with torch.no_grad():
        torch.func.functional_call(unet, weights, inputs)
    return found


class _Allocations(TorchDispatchMode):
    """Collects the storages of all tensors that operators return, unless they are views of tensors from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.outside: list[torch.UntypedStorage] = []  # references, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.storages:
                self.outside.append(tensor.untyped_storage())
        outside = {storage._cdata for storage in self.outside}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in outside:
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive(self) -> int:
        """Bytes of those that still exist."""
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def held_bytes(call: Call, leaf: torch.Tensor) -> int:
    """What a region holds between forward and backward; its result only if the region itself saves it."""
    with _Allocations() as allocations:
        x = leaf.clone(memory_format=torch.preserve_format)
        out = call(x)
        graph = out.grad_fn
        del x, out
    held = allocations.alive()
    del graph
    return held


def seconds_of(call: Call, leaf: torch.Tensor, d_out: torch.Tensor, clock: Clock) -> float:
    """One forward and backward pass."""
    begun = clock()
    torch.autograd.grad(call(leaf), leaf, d_out)
    return clock() - begun


def measure(region: Region, rounds: int, clock: Clock) -> tuple[list[float], list[int]]:
    """Median seconds and held bytes of: fused, plain, checkpointed."""
    fused, plain = MAKERS[region.operation](region)
    calls: list[Call] = [fused, plain, lambda x: checkpoint(plain, x, use_reentrant=False)]
    x = torch.randn(region.shape).to(DTYPE)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    d_out = torch.randn_like(fused(x))
    held = [held_bytes(call, x) for call in calls]
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):  # the first one warms up
        for call, times in zip(calls, seconds, strict=True):
            times.append(seconds_of(call, x, d_out, clock))
    return [statistics.median(times[1:]) for times in seconds], held


def step_seconds(resolution: int, rounds: int, clock: Clock) -> float:
    """Forward and backward pass of the whole UNet with all fused operations and random weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    unet = unet.to(DTYPE).to_empty(device="cpu").requires_grad_(False).eval().to(memory_format=torch.channels_last)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.02)
    side = resolution // 8
    inputs = {
        "sample": torch.randn(1, 4, side, side).to(DTYPE, memory_format=torch.channels_last),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 77, unet.config.cross_attention_dim).to(DTYPE).requires_grad_(),
    }
    optimize_unet(unet, example_inputs=inputs, attention="blockwise", convolution="winograd")
    times = []
    for _ in range(rounds + 1):
        begun = clock()
        unet(**inputs).sample.float().square().mean().backward()
        times.append(clock() - begun)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (default 5)")
    parser.add_argument("--resolution", type=int, default=512, help="pixels of the images (default 512)")
    parser.add_argument("--only", default="", help="operations whose name contains this (default all)")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of all threads instead of wall-clock time")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.manual_seed(0)
    step = step_seconds(args.resolution, min(args.rounds, 3), clock)
    say(f"a step of the UNet: {step:.2f} s, {DTYPE}, {torch.get_num_threads()} threads")
    say(f"{'':48}{'n':>4}{'fused':>10}{'plain':>10}{'checkpoint':>12}{'fused':>9}{'plain':>8}{'checkpoint':>11}")
    counts = record(args.resolution)
    for operation in (name for name in MAKERS if args.only in name):
        regions = {region: count for region, count in counts.items() if region.operation == operation}
        seconds, held = [0.0] * 3, [0] * 3
        for region, count in regions.items():
            one_seconds, one_held = measure(region, args.rounds, clock)
            seconds = [s + count * one for s, one in zip(seconds, one_seconds, strict=True)]
            held = [h + count * one for h, one in zip(held, one_held, strict=True)]
        say(
            f"{operation:48}{sum(regions.values()):>4}{seconds[0]:>8.3f} s{seconds[1]:>8.3f} s{seconds[2]:>10.3f} s"
            f"{held[0] / 1e6:>6.0f} MB{held[1] / 1e6:>5.0f} MB{held[2] / 1e6:>8.0f} MB"
        )
        for label, i in (("plain", 1), ("checkpoint", 2)):
            say(
                f"    against {label}: {100 * (seconds[i] - seconds[0]) / step:+.1f}% of a step saved, "
                f"{(held[i] - held[0]) / 1e6:+.0f} MB saved"
            )


if __name__ == "__main__":
    main()
