"""Where the time of a training step goes: seconds of each operation, its share, its rate against a large product's.

    python bench/step_profile.py [--steps 3] [--method lora] [--shapes 12] [--cpu-time]
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python ...     # as on a processor without AMX

The engine's own step at the shapes of Stable Diffusion 1.5 with random weights, 512 px, batch 1, bf16. Pictures, which
are encoded once, and the optimizer, which takes a millisecond, are left out. Each operator of torch is timed where it
is called, so the figures add up to the step, but for what Python does between operators. On a busy machine
``OMP_NUM_THREADS=1 ... --cpu-time`` is steadier.
"""

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import say
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parents[1]))

from sd15 import make

from sdtune.data.pictures import View
from sdtune.host.processor import instruction_set
from sdtune.methods.registry import method_of
from sdtune.models.family import Batch
from sdtune.models.registry import family_of
from sdtune.settings import Job, build

Clock = Callable[[], float]
Figures = dict[tuple[str, str], list[float]]
"""Seconds, calls and FLOPs of an operator, by its name and the shapes of its tensors."""
ATTENTION = {"attention_forward": 4, "attention_backward": 10}
"""FLOPs of the compiled attention, which torch's counter does not know: of two and five products, each 2 n m d."""


class Profile(TorchDispatchMode):
    """Times each operator that torch calls, also in the backward pass."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.figures: Figures = defaultdict(lambda: [0.0, 0.0, 0.0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begun = self._clock()
        out = func(*args, **(kwargs or {}))
        spent = self._clock() - begun
        name, tensors = func._overloadpacket.__name__, [x for x in args if isinstance(x, torch.Tensor)]
        flops = 0.0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        elif name in ATTENTION:
            (batch, n, width), m = args[0].shape, args[1].shape[1]
            flops = ATTENTION[name] * batch * n * m * width
        key = (name, " ".join("x".join(map(str, x.shape)) for x in tensors))
        self.figures[key] = [a + b for a, b in zip(self.figures[key], (spent, 1, flops), strict=True)]
        return out


def engine_step(method: str, model: Path) -> Callable[[], None]:
    """Forward and backward pass of the engine for one sample."""
    told = {"instance_prompt": "a photo of sks toy"} if method == "lora" else {"initializer_token": "toy"}
    settings = {"mixed_precision": "bf16", "train_batch_size": 1}
    data = {"path": "/nowhere", "resolution": 512, **told}
    run = {"run_name": "profile", "run_dir": "/nowhere", "method": method, "model": {"path": str(model)}}
    job = build(Job, {**run, "data": data, "training": settings})
    networks = family_of(model).load(job)
    learning = method_of(job)(job, networks)
    caption = "a photo of sks toy" if method == "lora" else f"a photo of a {job.data.placeholder_token}"
    if method == "lora":
        networks.encode_captions([caption])
    batch = Batch(
        latents=torch.randn(1, 4, 64, 64),
        noise=torch.randn(1, 4, 64, 64),
        timesteps=torch.tensor([500]),
        captions=[caption],
        views=[View(original=(512, 512), crop=(0, 0), target=(512, 512))],
        numbers=[0],
    )

    def step() -> None:
        networks.denoising_losses(batch).mean().backward()  # type: ignore[no-untyped-call]
        for learned in learning.learned.values():
            learned.parameter.grad = None

    return step


def product_rate(clock: Clock) -> float:
    """FLOP/s of a large product of bf16 matrices."""
    a, b = (torch.randn(4096, 4096).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(8):
        begun = clock()
        a @ b
        best = min(best, clock() - begun)
    return 2 * 4096**3 / best


def table(title: str, rows: Figures, total: float, rate: float) -> None:
    """The longest first."""
    say(f"\n{title:64}{'calls':>6}{'ms':>9}{'share':>8}{'of the rate':>13}")
    for names, (seconds, calls, flops) in sorted(rows.items(), key=lambda row: -row[1][0]):
        told = f"{100 * flops / seconds / rate:>11.0f} %" if flops else ""
        say(f"{' '.join(names)[:63]:64}{calls:>6.0f}{1000 * seconds:>9.1f}{100 * seconds / total:>6.1f} %{told}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="that are profiled, after one (default 3)")
    parser.add_argument(
        "--method",
        choices=("textual_inversion", "lora"),
        default="textual_inversion",
        help="default textual_inversion",
    )
    parser.add_argument("--shapes", type=int, default=12, help="rows of the table of shapes (default 12)")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of all threads instead of wall-clock time")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.manual_seed(0)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdtune" / "bench"
    step = engine_step(args.method, make(cache / "sd15"))
    step()
    rate, times = product_rate(clock), []
    with Profile(clock) as profile:
        for _ in range(args.steps):
            begun = clock()
            step()
            times.append(clock() - begun)
    shapes = {key: [figure / args.steps for figure in row] for key, row in profile.figures.items()}
    names: Figures = defaultdict(lambda: [0.0, 0.0, 0.0])
    for (name, _), row in shapes.items():
        names[name, ""] = [a + b for a, b in zip(names[name, ""], row, strict=True)]
    total = sum(row[0] for row in shapes.values())
    say(f"{instruction_set()}, {torch.get_num_threads()} threads, large product {rate / 1e9:.0f} GFLOP/s")
    say(f"a step: {statistics.median(times):.3f} s, of it operators {total:.3f} s")
    table("operator", {key: row for key, row in names.items() if row[0] > total / 500}, total, rate)
    longest = sorted(shapes.items(), key=lambda row: -row[1][0])[: args.shapes]
    table("operator, shapes of its tensors", dict(longest), total, rate)


if __name__ == "__main__":
    main()
