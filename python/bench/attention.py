"""Milliseconds and errors of self-attention in bf16 at the shapes of Stable Diffusion 1.5 at 512 pixels.

    python bench/attention.py [--rounds 7] [--threads 2]

torch's kernel, our matrix multiplications in blocks and, where there is one for the processor, our compiled kernel take
turns on the same tensors. Times are the fastest of ``--rounds``, ratios are to torch's. Errors are those of the three
gradients: norms, relative to exact attention in float64.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from contenders import say
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdtune.ops import kernels
from sdtune.ops.attention import attention

SHAPES = ((4096, 8, 40), (1024, 8, 80), (256, 8, 160), (64, 8, 160))
"""Sequence length, heads and head dimension of the UNet's levels, the outermost first."""

Gradients = tuple[torch.Tensor, ...]


@dataclass
class Contender:
    """A way to compute attention, and the seconds of its calls, forward and backward."""

    forward: Callable[[], object]
    backward: Callable[[], Gradients]
    """Gradients of q, k and v, each [heads, n, d]."""
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))


def by_autograd(function: Callable[..., torch.Tensor], operands: list[torch.Tensor], d_out: torch.Tensor) -> Contender:
    """A contender whose gradients come from autograd; all tensors are [heads, n, d]."""
    leaves = [x.detach().requires_grad_() for x in operands]
    out = function(*leaves)
    return Contender(lambda: function(*operands), lambda: torch.autograd.grad(out, leaves, d_out, retain_graph=True))


def in_one_kernel(operands: list[torch.Tensor], d_out: torch.Tensor) -> Contender:
    """Our compiled kernel, whose tensors are [1, n, heads * d]."""
    heads, length, width = operands[0].shape
    scale = width**-0.5

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1).reshape(1, length, heads * width)

    def of_heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(length, heads, width).transpose(0, 1)

    q, k, v, its_d = map(flat, (*operands, d_out))
    out, log_sums = kernels.attention_forward(q, k, v, heads, scale)
    return Contender(
        lambda: kernels.attention_forward(q, k, v, heads, scale),
        lambda: tuple(map(of_heads, kernels.attention_backward(q, k, v, out, its_d, log_sums, heads, scale))),
    )


def contenders(operands: list[torch.Tensor], d_out: torch.Tensor) -> dict[str, Contender]:
    """All that run on this processor."""
    scale = operands[0].shape[-1] ** -0.5
    found = {
        "torch": by_autograd(lambda *x: F.scaled_dot_product_attention(*(y[None] for y in x))[0], operands, d_out),
        "blocks": by_autograd(lambda *x: attention(*x, scale), operands, d_out),
    }
    return found | ({"kernel": in_one_kernel(operands, d_out)} if kernels.usable() else {})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts (default 7)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own choice)"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if not kernels.usable():
        say("there is no compiled kernel for this processor")
    say(f"fastest of {args.rounds}, {args.threads} threads: forward, backward, error of the gradients")
    for length, heads, width in SHAPES:
        *operands, d_out = (torch.randn(heads, length, width).bfloat16() for _ in range(4))
        exact = by_autograd(F.scaled_dot_product_attention, [x.double() for x in operands], d_out.double()).backward()
        found = contenders(operands, d_out)
        for _ in range(args.rounds):
            for one in found.values():
                for call, seconds in zip((one.forward, one.backward), one.seconds, strict=True):
                    begun = time.perf_counter()
                    call()
                    seconds.append(time.perf_counter() - begun)
        base = [min(seconds) for seconds in found["torch"].seconds]
        say(f"{length} positions, {heads} heads of dimension {width}:")
        for name, one in found.items():
            best = [min(seconds) for seconds in one.seconds]
            times = ", ".join(f"{1000 * s:7.2f} ms {b / s:4.2f} x" for s, b in zip(best, base, strict=True))
            pairs = zip(one.backward(), exact, strict=True)
            errors = [float((got.double() - want).norm() / want.norm()) for got, want in pairs]
            say(f"  {name:6} {times}, {100 * min(errors):.2f} to {100 * max(errors):.2f} %")


if __name__ == "__main__":
    main()
