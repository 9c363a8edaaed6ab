"""A step of the engine against a step of the plain loop: time, where it goes, start, memory, bytes between ranks.

    python bench/training_step.py                      # Stable Diffusion 1.5 at 512 px: make bench
    python bench/training_step.py --toyworld           # seconds instead of minutes: make bench-toy
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python ...     # as on a processor without AMX

Whole programs run alternately: plain, engine, plain, engine. Figures are medians over the rounds; ratios are computed
within a round. The floor is the time of the step's FLOPs at the rate of a large bf16 matrix multiplication.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from contenders import PYTHON, Costs, Stage, environment, run, say

REPOSITORY = PYTHON.parent
RATES = """
import time, torch
from torch.utils.flop_counter import FlopCounterMode
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
a, b = (torch.randn(4096, 4096).bfloat16() for _ in range(2))
best = 1e9
for _ in range(12):
    began = time.perf_counter(); a @ b; best = min(best, time.perf_counter() - began)
print(2 * 4096**3 / best)
unet = UNet2DConditionModel.from_pretrained({model!r}, subfolder="unet", torch_dtype=torch.bfloat16)
unet.requires_grad_(False).eval().set_attn_processor(AttnProcessor())  # matrix multiplications that the counter knows
side, dim = {side}, unet.config.cross_attention_dim
hidden = torch.randn({batch}, {tokens}, dim).bfloat16().requires_grad_()
with FlopCounterMode(display=False) as counter:
    out = unet(torch.randn({batch}, 4, side, side).bfloat16(), torch.full(({batch},), 500), hidden).sample
    out.float().square().mean().backward()
print(counter.get_total_flops())
"""


def floor(stage: Stage, latent_side: int, tokens: int) -> tuple[float, float, float]:
    """FLOP/s of a large bf16 matrix multiplication, FLOPs of forward and activation backward, and their seconds."""
    code = RATES.format(model=str(stage.model), side=latent_side, batch=stage.batch, tokens=tokens)
    done = subprocess.run(
        [stage.python, "-c", code], env=environment(stage), check=True, capture_output=True, text=True
    )
    rate, flops = (float(line) for line in done.stdout.split()[-2:])
    return rate, flops, flops / rate


def middle(costs: list[Costs], name: str) -> float:
    """Median of a field over the rounds."""
    return median(getattr(c, name) for c in costs)


def ratio(ours: list[Costs], plains: list[Costs], name: str) -> float:
    """Median over the rounds of plain over engine."""
    return median(getattr(p, name) / getattr(o, name) for o, p in zip(ours, plains, strict=True))


def compare(stage: Stage, rounds: int) -> tuple[list[Costs], list[Costs]]:
    """Run both programs alternately; a first, short run of the engine fills the cache of converted weights."""
    cold = run("engine", replace(stage, steps=1))
    say(f"  (weights converted, where they were not yet: first step after {cold.first_step_ends_s:.1f} s)")
    ours, plains = [], []
    for _ in range(rounds):
        plains.append(run("plain", stage))
        ours.append(run("engine", stage))
        say(f"  round {len(ours)}: plain {plains[-1].step_s:.3f} s, engine {ours[-1].step_s:.3f} s a step")
    return ours, plains


def report(stage: Stage, ours: list[Costs], plains: list[Costs], limit: float) -> None:
    """One table."""
    say(f"\n  stack {stage.stack}, {stage.resolution} px, batch {stage.batch} x {stage.ranks} rank(s), bf16")
    say(f"  {'':34}{'plain':>10}{'engine':>10}   plain / engine")

    def row(label: str, name: str, scale: float = 1.0) -> None:
        p, o = middle(plains, name) / scale, middle(ours, name) / scale
        say(f"  {label:34}{p:>10.2f}{o:>10.2f}{ratio(ours, plains, name):>11.2f} x")

    row("step, s", "step_s")
    row("start to first step's begin, s", "first_step_begins_s")
    row("start to first step's end, s", "first_step_ends_s")
    row("peak RSS of a rank, steady, GB", "peak_rss_bytes", 1e9)
    row("peak RSS of a rank, whole life, GB", "whole_peak_rss_bytes", 1e9)
    for who, costs in (("plain", plains), ("engine", ours)):
        parts = {n: median(c.parts[n] for c in costs) for n in costs[0].parts}
        say(f"  a step of {who}: " + ", ".join(f"{n.removesuffix('_s')} {s:.3f} s" for n, s in parts.items()))
    if not all(cost.all_encoded for cost in ours):
        say("  engine: the steps did not show every picture and mirror image, so its steady peak holds the VAE too")
    if (encode := ours[0].encode_s) is not None:
        say(f"  engine: {encode:.2f} s once for each picture and mirror image, when a step first shows it")
    if limit:
        say(f"  floor {limit:.2f} s: plain {middle(plains, 'step_s') / limit:.2f} x, engine "
            f"{middle(ours, 'step_s') / limit:.2f} x")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdtune" / "bench" / "sd15"
    parser.add_argument("--toyworld", action="store_true", help="the embedded model, batch 8, instead of SD 1.5")
    parser.add_argument("--model", type=Path, default=cache, help=f"SD 1.5, or where to make one (default {cache})")
    parser.add_argument("--pictures", type=Path, help="folder (default: one picture of toyworld)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs of each contender (default 3)")
    parser.add_argument("--steps", type=int, help="steps of a run (default 6, or 30 of toyworld)")
    parser.add_argument("--preload", default="", help="LD_PRELOAD of the runs: libiomp5 and libtcmalloc")
    parser.add_argument(
        "--method", choices=("textual_inversion", "lora"), nargs="+", dest="methods", help="default both"
    )
    parser.add_argument("--ipex-python", type=Path, help="interpreter of the stack ipex: compares on that one too")
    args = parser.parse_args()

    native = Stage(
        python=Path(sys.executable),
        stack="native",
        model=REPOSITORY / "toyworld" / "model" if args.toyworld else args.model,
        pictures=Path(),
        resolution=64 if args.toyworld else 512,
        steps=args.steps or (30 if args.toyworld else 6),
        batch=8 if args.toyworld else 1,
        preload=args.preload,
    )
    if not args.toyworld:
        from sd15 import make

        make(args.model)
    with tempfile.TemporaryDirectory(prefix="sdtune-bench-") as folder:
        if not args.pictures:  # one, so that the few steps show it and its mirror image
            shutil.copy(REPOSITORY / "toyworld" / "concept" / "0.jpg", folder)
        for method in args.methods or ("textual_inversion", "lora"):
            say(f"\n=== {method}")
            measure(replace(native, method=method, pictures=args.pictures or Path(folder)), args)


def measure(native: Stage, args: argparse.Namespace) -> None:
    """Each stack in turn, then what ranks exchange."""
    stages = [native]
    if args.ipex_python and native.method == "textual_inversion":
        # the OpenMP of the other environment, should one be preloaded
        preload = args.preload.replace(sys.prefix, str(args.ipex_python.parents[1]))
        stages.append(replace(native, python=args.ipex_python, stack="ipex", preload=preload))
    limit = 0.0
    for stage in stages:
        say(f"{stage.stack}: {args.rounds} rounds of {stage.steps} steps")
        if not args.toyworld:
            rate, flops, limit = floor(stage, latent_side=64, tokens=77)
            say(f"  bf16 matrix multiplication: {rate / 1e9:.0f} GFLOP/s")
            say(f"  forward and activation backward of a step: {flops / 1e12:.3f} TFLOP")
        ours, plains = compare(stage, args.rounds)
        report(stage, ours, plains, limit)
    say("\nbetween ranks: 2 ranks over gloo, native")
    two = replace(native, ranks=2, steps=args.steps or (10 if args.toyworld else 2))
    for who in ("plain", "engine"):
        costs = run(who, two)
        say(f"  {who:6} all-reduces {costs.sync_bytes:,} bytes a rank and step")


if __name__ == "__main__":
    main()
