"""A step of the engine against a step of the plain loop: time, where it goes, start, memory, bytes between ranks.

    python bench/training_step.py                      # Stable Diffusion 1.5 at 512 px: make bench
    python bench/training_step.py --toyworld           # seconds instead of minutes: make bench-toy
    python bench/training_step.py --sdxl               # Stable Diffusion XL at 512 and 768 px: make bench-sdxl
    python bench/training_step.py --isa avx512         # as on a processor without AMX

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
ISA = {"amx": {}, "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3"}}
"""Variables that limit oneDNN, the engine's own kernels, which obey oneDNN's, and MKL."""
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
with torch.device("meta"):  # nothing is computed
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config({model!r}, subfolder="unet")).bfloat16()
    unet.requires_grad_(False).eval().set_attn_processor(AttnProcessor())  # multiplications that the counter knows
    side, config = {side}, unet.config
    hidden = torch.empty({batch}, {tokens}, config.cross_attention_dim, dtype=torch.bfloat16, requires_grad=True)
    added = None
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = dict(text_embeds=torch.empty({batch}, pooled), time_ids=torch.empty({batch}, 6))
    latents, timesteps = torch.empty({batch}, 4, side, side, dtype=torch.bfloat16), torch.empty({batch})
with torch.device("meta"), FlopCounterMode(display=False) as counter:
    out = unet(latents, timesteps, hidden, added_cond_kwargs=added).sample
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


def compare(stage: Stage, rounds: int, *, with_plain: bool) -> tuple[list[Costs], list[Costs]]:
    """Run both programs alternately; a first, short run of the engine fills the cache of converted weights."""
    cold = run("engine", replace(stage, steps=1))
    say(f"  (weights converted, where they were not yet: first step after {cold.first_step_ends_s:.1f} s)")
    ours, plains = [], []
    for _ in range(rounds):
        if with_plain:
            plains.append(run("plain", stage))
        ours.append(run("engine", stage))
        told = f"plain {plains[-1].step_s:.3f} s, " if plains else ""
        say(f"  round {len(ours)}: {told}engine {ours[-1].step_s:.3f} s a step")
    return ours, plains


def report(stage: Stage, ours: list[Costs], plains: list[Costs], limit: float) -> None:
    """One table; without the plain loop, if it did not run."""
    say(f"\n  stack {stage.stack}, {stage.resolution} px, batch {stage.batch} x {stage.ranks} rank(s), bf16")
    contenders = {who: costs for who, costs in (("plain", plains), ("engine", ours)) if costs}
    say(f"  {'':34}" + "".join(f"{who:>10}" for who in contenders) + ("   plain / engine" if plains else ""))

    def row(label: str, name: str, scale: float = 1.0) -> None:
        told = "".join(f"{middle(costs, name) / scale:>10.2f}" for costs in contenders.values())
        say(f"  {label:34}{told}" + (f"{ratio(ours, plains, name):>11.2f} x" if plains else ""))

    row("step, s", "step_s")
    row("start to first step's begin, s", "first_step_begins_s")
    row("start to first step's end, s", "first_step_ends_s")
    row("peak RSS of a rank, steady, GB", "peak_rss_bytes", 1e9)
    row("peak RSS of a rank, whole life, GB", "whole_peak_rss_bytes", 1e9)
    row("peak of its own, steady, GB", "own_peak_bytes", 1e9)
    row("peak of its own, whole life, GB", "whole_own_peak_bytes", 1e9)
    row("mapped files, shared by ranks, GB", "mapped_bytes", 1e9)
    for who, costs in contenders.items():
        parts = {n: median(c.parts[n] for c in costs) for n in costs[0].parts}
        say(f"  a step of {who}: " + ", ".join(f"{n.removesuffix('_s')} {s:.3f} s" for n, s in parts.items()))
    if not all(cost.all_encoded for cost in ours):
        say("  engine: the steps did not show every picture and mirror image, so its steady peak holds the VAE too")
    if (encode := ours[0].encode_s) is not None:
        say(f"  engine: {encode:.2f} s once for each picture and mirror image, when a step first shows it")
    if limit:
        times = (f"{who} {middle(costs, 'step_s') / limit:.2f} x" for who, costs in contenders.items())
        say(f"  floor {limit:.2f} s: {', '.join(times)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toyworld", action="store_true", help="the embedded model, batch 8, instead of SD 1.5")
    parser.add_argument("--sdxl", action="store_true", help="the shapes of Stable Diffusion XL instead of SD 1.5")
    parser.add_argument("--model", type=Path, help="the model, or where to make one (default in ~/.cache/sdtune/bench)")
    parser.add_argument("--pictures", type=Path, help="folder (default: one picture of toyworld)")
    parser.add_argument("--resolution", type=int, nargs="+", help="pixels (default 512; of XL 512 768; of toyworld 64)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs of each contender (default 3)")
    parser.add_argument("--steps", type=int, help="steps of a run (default 6; of XL 4; of toyworld 30)")
    parser.add_argument("--preload", default="", help="LD_PRELOAD of the runs: libiomp5 and libtcmalloc")
    parser.add_argument(
        "--method", choices=("textual_inversion", "lora"), nargs="+", dest="methods", help="default both"
    )
    parser.add_argument("--engine-only", action="store_true", help="no plain loop, which needs more memory")
    parser.add_argument("--ipex-python", type=Path, help="interpreter of the stack ipex: compares on that one too")
    parser.add_argument(
        "--isa", choices=ISA, default="amx", help="instructions that both programs may use (default amx: all)"
    )
    args = parser.parse_args()
    os.environ |= ISA[args.isa]  # the programs inherit it

    resolutions, steps, batch = ([64], 30, 8) if args.toyworld else ([512, 768], 4, 1) if args.sdxl else ([512], 6, 1)
    native = Stage(
        python=Path(sys.executable),
        stack="native",
        model=make_model(args),
        pictures=Path(),
        resolution=0,
        steps=args.steps or steps,
        batch=batch,
        preload=args.preload,
    )
    with tempfile.TemporaryDirectory(prefix="sdtune-bench-") as folder:
        if not args.pictures:  # one, so that the few steps show it and its mirror image
            shutil.copy(REPOSITORY / "toyworld" / "concept" / "0.jpg", folder)
        for method in args.methods or ("textual_inversion", "lora"):
            for side in args.resolution or resolutions:
                say(f"\n=== {method}, {side} px")
                measure(replace(native, method=method, resolution=side, pictures=args.pictures or Path(folder)), args)


def make_model(args: argparse.Namespace) -> Path:
    """Folder of the model that is asked for; made first, if it does not exist."""
    if args.toyworld:
        return REPOSITORY / "toyworld" / "model"
    import sd15
    import sdxl

    name, make = ("sdxl", sdxl.make) if args.sdxl else ("sd15", sd15.make)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdtune" / "bench"
    return make(args.model or cache / name)


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
            rate, flops, limit = floor(stage, latent_side=stage.resolution // 8, tokens=77)
            say(f"  bf16 matrix multiplication: {rate / 1e9:.0f} GFLOP/s")
            say(f"  forward and activation backward of a step: {flops / 1e12:.3f} TFLOP")
        ours, plains = compare(stage, args.rounds, with_plain=not args.engine_only)
        report(stage, ours, plains, limit)
    if args.sdxl or args.engine_only:  # two ranks of the plain loop do not fit into the memory that one needs
        return
    say("\nbetween ranks: 2 ranks over gloo, native")
    two = replace(native, ranks=2, steps=args.steps or (10 if args.toyworld else 2))
    costs = {who: run(who, two) for who in ("plain", "engine")}
    for who, cost in costs.items():
        say(
            f"  {who:6} all-reduces {cost.sync_bytes:,} bytes a rank and step; peak of both ranks together "
            f"{cost.host_peak_bytes / 1e9:.2f} GB"
        )
    say(f"  of that memory the engine needs {costs['engine'].host_peak_bytes / costs['plain'].host_peak_bytes:.0%}")


if __name__ == "__main__":
    main()
