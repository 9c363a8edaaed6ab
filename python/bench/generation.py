"""Seconds per image, and its similarity to a full run: plain diffusers, the usual OpenVINO flow, and sdtune.

    python bench/generation.py --toyworld                   # all ways to save operations; takes minutes
    python bench/generation.py --size 256 --steps 4         # the shapes of Stable Diffusion 1.5, random weights
    python bench/generation.py --toyworld --sweep --json toyworld.json   # their combinations, and the front of them
    python bench/generation.py --sweep --rounds 1 --json sd15.json       # for bench/front.py

All contenders generate the same prompts with the same seeds and steps in one run, and the fastest of ``--rounds`` calls
counts. Ratios are to the usual flow: export, reshape to a static shape, save, ``from_pretrained``, generate. With
current versions that flow has dynamic shapes after it is loaded. It is measured again at the end, to show how steady
the machine was. Similarity is to sdtune's full run in float32, as the median over ``--pictures`` pictures; with random
weights it says nothing about how images look.

Similarity is PSNR and SSIM. Of learned distances (LPIPS, DISTS, DreamSim, DINO) no package ships the weights of its
backbone: each downloads them, most through torchvision.

The share of the peak is relative to a large matrix multiplication in float32 (bf16 where the CPU has it) on the same
cores.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contenders import say
from diffusers import AutoencoderTiny
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from front import pareto, rows_of, table
from picture_points import (
    FAST,
    FULL,
    PLAIN,
    USUAL,
    Call,
    distil_decoder,
    ours,
    plain,
    sweep,
    train,
    usual_flow,
    ways,
)
from ssim import ssim

from sdtune.host.processor import describe_processor
from sdtune.inference import export
from sdtune.inference.images import similarity
from sdtune.settings import Job

PLACES = ["", " in the snow", " on the grass", " at night", " on the sea"]


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix multiplication."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * 2048**3 / best


def unet_flops(job: Job, side: int) -> int:
    """FLOPs of one evaluation of one sample."""
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(job.model.path, subfolder="unet"))
        width = unet.config.cross_attention_dim
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet(torch.zeros(1, 4, side, side), torch.zeros(1), torch.zeros(1, 77, width))
    return int(counter.get_total_flops())


def contenders(job: Job, args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Each contender's name, and the function that loads it; the exports of smaller weights replace the one before."""
    others: dict[str, Callable[[], Call]] = {
        USUAL: lambda: usual_flow(job, scratch / "usual", args),
        FULL: lambda: ours(job, args, precision="f32"),
        "plain diffusers f32": lambda: plain(job, torch.float32, args),
        "plain diffusers bf16": lambda: plain(job, torch.bfloat16, args),
    }
    if FAST == "f32":
        del others["plain diffusers bf16"]
        say("no bf16: this CPU has no instructions for it, and emulation in torch is many times slower than float32")
    if args.sweep:
        others = {name: others[name] for name in ((USUAL, FULL) if args.toyworld else (USUAL,))}
    yield from others.items()
    exported = "fp16"
    for point in args.points(scratch):
        named = not args.only or any(only in point.name for only in args.only)
        if not named or not point.possible(args.steps):
            continue
        if point.weights != exported:
            changed = {
                "weights": point.weights,
                "similarity_images": 0,
                "calibration_samples": args.calibration_samples,
            }
            export.export(replace(job, openvino=replace(job.openvino, **changed)))
            exported = point.weights
        yield point.name, lambda point=point: ours(job, args, **point.settings)


def measure(call: Call, args: argparse.Namespace) -> tuple[float, list[Image.Image]]:
    """Seconds per image of the fastest call, after one that compiles; and ``--pictures`` images."""
    images, times = [], []
    for first in range(0, args.pictures, args.batch):
        numbers = range(first, first + args.batch)
        images += call([args.prompts[n % len(args.prompts)] for n in numbers], [n + 1 for n in numbers])
    for _ in range(args.rounds):
        begun = time.perf_counter()
        call(args.prompts[: args.batch], args.seeds)
        times.append(time.perf_counter() - begun)
    return min(times) / args.batch, images


def measure_all(job: Job, args: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """The figures of all contenders."""
    taken: dict[str, tuple[float, list[Image.Image]]] = {}
    usual: Call | None = None
    for name, load in contenders(job, args, scratch):
        call = load()
        usual = call if name == USUAL else usual
        taken[name] = measure(call, args)
        say(f"  {name}: {taken[name][0]:.2f} s")
        del call
        gc.collect()  # a pipeline and what replaces its UNet's forward refer to each other, and hold gigabytes
    if usual:
        again = measure(usual, args)[0]
        say(f"the usual flow at the begin and at the end: {taken[USUAL][0]:.2f} and {again:.2f} s")
    # without the full run, similarity is to what the same run generates in the plain way
    references = taken[FULL if FULL in taken else PLAIN if PLAIN in taken else USUAL][1]
    points = []
    for name, (seconds, images) in taken.items():
        pairs = list(zip(images, references, strict=True))
        psnr = [min(100.0, similarity([a], [b])[0]) for a, b in pairs]
        points.append({"name": name, "seconds": seconds, "psnr": psnr, "ssim": [ssim(a, b) for a, b in pairs]})
    return points


def print_table(job: Job, args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Seconds and similarity of each contender, and the share of the peak; of a sweep the front."""
    rows = rows_of(figures, figures)
    say(f"\n{figures['what']}\n\n{table(rows)}")
    if args.sweep:
        say(f"\nthe front, dominated points left out\n\n{table(pareto(rows))}")
    best = next((row for row in rows if row.name == PLAIN), None)
    if best:
        rate = matmul_rate(torch.bfloat16 if FAST == "bf16" else torch.float32)
        flops = 2 * (args.steps + 1) * unet_flops(job, args.size // 8)  # PNDM evaluates once more
        share = flops / best.seconds / rate
        say(f"\n{PLAIN}: {share:.0%} of the {rate / 1e9:.0f} GFLOP/s of a matrix multiplication in {FAST} (UNet only)")


def parse() -> argparse.Namespace:
    """The command line, and what follows from it."""
    cache = Path.home() / ".cache" / "sdtune" / "bench" / "sd15"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toyworld", action="store_true", help="generate with the embedded model, which is trained")
    parser.add_argument("--model", type=Path, default=cache, help=f"created if it is missing (default {cache})")
    parser.add_argument("--size", type=int, help="pixels (default 64 for toyworld, else 512)")
    parser.add_argument("--steps", type=int, default=25, help="inference steps of an image (default 25)")
    parser.add_argument("--batch", type=int, default=1, help="prompts per call (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each contender; the fastest counts (default 3)")
    parser.add_argument("--pictures", type=int, help="that are compared (default 20 for toyworld, else one call)")
    parser.add_argument("--sweep", action="store_true", help="combinations of all ways, and the front of them")
    parser.add_argument("--keep", type=Path, help="new folder for the run and its copy (default a temporary one)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--calibration-samples", type=int, default=100, help="of a hybrid export (default 100)")
    parser.add_argument("--only", nargs="*", default=[], help="points whose names contain one of these (default all)")
    args = parser.parse_args()
    args.size = args.size or (64 if args.toyworld else 512)
    args.pictures = args.pictures or (20 if args.toyworld else args.batch)
    args.guidance = 4.0 if args.toyworld else 7.5
    fewer = (12, 8) if args.toyworld else ()
    args.points = (lambda _: sweep()) if args.sweep else (lambda scratch: ways(fewer, scratch))
    count = max(args.batch, len(PLACES))
    args.prompts = [f"a photo of a <dicoo>{PLACES[i % len(PLACES)]}" for i in range(count)]
    args.seeds = list(range(1, args.batch + 1))
    args.options = {
        "num_inference_steps": args.steps, "guidance_scale": args.guidance, "height": args.size, "width": args.size,
    }  # fmt: skip
    return args


def main() -> None:
    """Measure and print."""
    args = parse()
    if not args.toyworld:
        from sd15 import make

        make(args.model)
    with tempfile.TemporaryDirectory(prefix="sdtune-bench-") as folder:
        scratch = args.keep or Path(folder)
        job = train(args, scratch / "run")
        done = export.export(job)
        say(f"export: peak {done.peak_bytes / 1e9:.2f} GB for {done.model_bytes / 1e9:.2f} GB of float32 weights")
        if args.toyworld and not args.sweep:
            distil_decoder(job, scratch / "tiny", seconds=60)
        elif not args.sweep:
            AutoencoderTiny().save_pretrained(scratch / "tiny")  # random, like the networks
        points = measure_all(job, args, scratch)
    model = "the embedded model" if args.toyworld else "the shapes of Stable Diffusion 1.5"
    cores = f"{describe_processor()['cpu']}, {torch.get_num_threads()} threads"
    what = (
        f"{model}, {args.size} px, {args.steps} steps, {args.batch} prompt(s) per call, s per picture, fastest of "
        f"{args.rounds}, {args.pictures} picture(s) compared; {cores}"
    )
    figures = {"what": what, "baseline": USUAL, "points": points}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print_table(job, args, figures)


if __name__ == "__main__":
    main()
