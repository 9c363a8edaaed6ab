"""Seconds per image, and its similarity to a full run: plain diffusers, the usual OpenVINO flow, and sdtune.

    python bench/generation.py --toyworld --steps 25        # all ways to save operations; takes minutes
    python bench/generation.py --size 256 --steps 4         # the shapes of Stable Diffusion 1.5, random weights

All contenders generate the same prompts with the same seeds and steps in one run, and the fastest of ``--rounds`` calls
counts. Ratios are to the usual flow: export, reshape to a static shape, save, ``from_pretrained``, generate. With
current versions that flow has dynamic shapes after it is loaded. Similarity is to sdtune's full run in float32; with
random weights it says nothing about how images look.

The share of the peak is relative to a large matrix multiplication in float32 (bf16 where the CPU has it) on the same
cores.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import say
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdtune.host.processor import has_bf16
from sdtune.inference import export
from sdtune.inference.draw import load_generator
from sdtune.inference.images import similarity
from sdtune.inference.plan import make_plan
from sdtune.launch.run_folder import Run
from sdtune.methods.formats import save_embeddings
from sdtune.methods.textual_inversion import save_full_pipeline
from sdtune.models.pipelines import draw
from sdtune.settings import DataArgs, GenerationJob, Job, ModelArgs, OpenVINOArgs, TrainingArgs, ValidationArgs
from toyworld.captions import examples
from toyworld.drawings import draw_toy

REPOSITORY = Path(__file__).parents[2]
FAST = "bf16" if has_bf16() else "f32"
"""Precision of all contenders but the full run; the usual flow uses it by default."""


@dataclass
class Measured:
    """What one contender did."""

    seconds: float
    """Per image."""
    images: list[Image.Image]
    """Of its last call."""


def fastest(call: Callable[[], list[Image.Image]], rounds: int) -> Measured:
    """The fastest of ``rounds`` calls, after one call that compiles."""
    images = call()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        images = call()
        times.append(time.perf_counter() - begun)
    return Measured(min(times) / len(images), images)


def train(args: argparse.Namespace, folder: Path) -> Job:
    """A finished run: the concept learned on toyworld; on Stable Diffusion's shapes an embedding of zeros."""
    model = REPOSITORY / "toyworld" / "model" if args.toyworld else args.model
    job = Job(
        run_name="bench",
        run_dir=str(folder),
        model=ModelArgs(path=str(model)),
        data=DataArgs(path=str(REPOSITORY / "toyworld" / "concept"), placeholder_token="<dicoo>", resolution=args.size),
        training=TrainingArgs(
            max_train_steps=100, train_batch_size=16, learning_rate=5e-3, mixed_precision="no", checkpointing_steps=0
        ),
        validation=ValidationArgs(steps=0),
        openvino=OpenVINOArgs(batch_size=args.batch),
    )
    if args.toyworld:
        from sdtune.training.trainer import train as learn

        learn(job)
        return job
    run, rows = Run(folder), torch.zeros(1, 768)
    folder.mkdir(parents=True)
    save_embeddings(run.learned, job.data.placeholder_token, {job.data.placeholder_token: rows})
    save_full_pipeline(model, run.pipeline, job.data.placeholder_token, {"text_encoder": rows})
    run.finish({"resolution": args.size}, [run.learned])
    return job


def usual_flow(job: Job, folder: Path, args: argparse.Namespace) -> Callable[[], list[Image.Image]]:
    """Export, make static, save, load, generate, as tutorials do."""
    from optimum.intel import OVStableDiffusionPipeline

    pipeline = OVStableDiffusionPipeline.from_pretrained(Run(job.run_dir).pipeline, export=True, compile=False)
    pipeline.reshape(batch_size=args.batch, height=args.size, width=args.size, num_images_per_prompt=1)
    pipeline.save_pretrained(folder)
    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, compile=True)
    shape = pipeline.unet.model.input("sample").get_partial_shape()
    say(f"the usual flow: the UNet's input after reload is {shape}")
    pipeline.set_progress_bar_config(disable=True)
    return lambda: draw(pipeline, args.prompts, args.seeds, **args.options)


def plain(job: Job, dtype: torch.dtype, args: argparse.Namespace) -> Callable[[], list[Image.Image]]:
    """Diffusers without changes."""
    pipeline = StableDiffusionPipeline.from_pretrained(Run(job.run_dir).pipeline, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.text_encoder.to(dtype)
    return lambda: draw(pipeline, args.prompts, args.seeds, **args.options)


def ours(job: Job, args: argparse.Namespace, **values: Any) -> Callable[[], list[Image.Image]]:
    """What generate_images.py does, without writing files."""
    asked = GenerationJob(
        run_dir=job.run_dir,
        prompts=args.prompts,
        seeds=[1],
        num_inference_steps=values.pop("steps", args.steps),
        guidance_scale=args.guidance,
        **values,
    )
    plan = make_plan(asked)
    generator = load_generator(asked, plan, sum(map(len, plan.cores)))
    return lambda: generator.generate(args.prompts, args.seeds)


def distil_decoder(job: Job, folder: Path, seconds: float) -> None:
    """Train a tiny decoder for toyworld to reproduce the model's own decoder, for so many seconds."""
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(job.model.path, subfolder="vae", torch_dtype=torch.float32).eval()
    tiny = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(24,) * 4)
    optimizer = torch.optim.AdamW(tiny.decoder.parameters(), lr=2e-3)
    images = [draw_toy(e.toy, e.pose, 64) for e in examples(384, 64, seed=5)]
    pixels = torch.stack([torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1 for i in images])
    end, step = time.monotonic() + seconds, 0
    with torch.no_grad():
        latents = torch.cat([vae.encode(p).latent_dist.mean for p in pixels.split(64)])
        targets = torch.cat([vae.decode(x).sample for x in latents.split(64)])
    while time.monotonic() < end:
        picked = torch.randint(len(latents), (16,))
        loss = (tiny.decode(latents[picked] * vae.config.scaling_factor).sample - targets[picked]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    say(f"tiny decoder: {step} steps of distillation, {127.5 * float(loss):.1f} of 255 from the full decoder")
    tiny.save_pretrained(folder)


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


def contenders(job: Job, args: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], Callable[[], Any]]]:
    """{name: function that loads the contender, and returns the function that generates}."""

    def with_sdtune(**values: Any) -> Callable[[], Callable[[], Any]]:
        return lambda: ours(job, args, **({"precision": FAST} | values))

    never = {"guidance_stop": 0.01, "guidance_start": 0.005}
    found: dict[str, Callable[[], Callable[[], Any]]] = {
        "plain diffusers f32": lambda: plain(job, torch.float32, args),
        "plain diffusers bf16": lambda: plain(job, torch.bfloat16, args),
        "usual OpenVINO flow": lambda: usual_flow(job, scratch / "usual", args),
        FULL: with_sdtune(precision="f32"),
        "bf16": with_sdtune(),
        "DPM-Solver++": with_sdtune(scheduler="dpmsolver++"),
        "guided to 0.75": with_sdtune(guidance_stop=0.75),
        "guided to 0.5": with_sdtune(guidance_stop=0.5),
        "guided from 0.1 to 0.6": with_sdtune(guidance_start=0.1, guidance_stop=0.6),
        "no guidance": with_sdtune(**never),
        "tiny decoder": with_sdtune(tiny_autoencoder=str(scratch / "tiny")),
        "DPM++, guided to 0.5": with_sdtune(scheduler="dpmsolver++", guidance_stop=0.5),
    }
    for steps in args.fewer:
        found[f"DPM++, {steps} steps"] = with_sdtune(scheduler="dpmsolver++", steps=steps)
        found[f"LCM, {steps} steps, no guidance"] = with_sdtune(scheduler="lcm", steps=steps, **never)
    if FAST == "f32":
        for name in ("plain diffusers bf16", "bf16"):
            del found[name]
        say("no bf16: this CPU has no instructions for it, and emulation in torch is many times slower than float32")
    return {name: found[name] for name in found if not args.only or any(only in name for only in (FULL, *args.only))}


FULL = "sdtune, full, f32"


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
    parser.add_argument(
        "--weights", nargs="*", default=["int8", "hybrid"], help="further exports beside fp16 (default int8 hybrid)"
    )
    parser.add_argument("--calibration-samples", type=int, default=100, help="of a hybrid export (default 100)")
    parser.add_argument(
        "--only", nargs="*", default=[], help="contenders whose names contain one of these (default all)"
    )
    args = parser.parse_args()
    args.size = args.size or (64 if args.toyworld else 512)
    args.guidance = 4.0 if args.toyworld else 7.5
    args.fewer = (12, 8, 4) if args.toyworld else ()
    places = ["", " in the snow", " on the grass", " at night", " on the sea"]
    args.prompts = [f"a photo of a <dicoo>{places[i % len(places)]}" for i in range(args.batch)]
    args.seeds = list(range(1, args.batch + 1))
    args.options = {
        "num_inference_steps": args.steps, "guidance_scale": args.guidance, "height": args.size, "width": args.size,
    }  # fmt: skip
    return args


def measure(job: Job, args: argparse.Namespace, scratch: Path) -> dict[str, Measured]:
    """All contenders, and the exports with smaller weights."""
    measured: dict[str, Measured] = {}

    def take(name: str, call: Callable[[], list[Image.Image]]) -> None:
        measured[name] = fastest(call, args.rounds)
        say(f"  {name}: {measured[name].seconds:.2f} s")

    for name, load in contenders(job, args, scratch).items():
        take(name, load())
    for weights in args.weights:
        changed = {"weights": weights, "similarity_images": 0, "calibration_samples": args.calibration_samples}
        quantized = replace(job, openvino=replace(job.openvino, **changed))
        export.export(quantized)
        take(weights, ours(quantized, args, precision=FAST))
        quick = {"scheduler": "dpmsolver++", "guidance_stop": 0.5}
        take(f"{weights}, DPM++, guided to 0.5", ours(quantized, args, precision=FAST, **quick))
    return measured


def print_table(job: Job, args: argparse.Namespace, measured: dict[str, Measured]) -> None:
    """Seconds and similarity of each contender, and the share of the peak."""
    rate = matmul_rate(torch.bfloat16 if FAST == "bf16" else torch.float32)
    evaluations = args.steps + 1  # PNDM
    flops = 2 * evaluations * unet_flops(job, args.size // 8)
    best = "bf16" if "bf16" in measured else FULL
    share = flops / measured[best].seconds / rate
    say(f"\n{args.size} px, {args.steps} steps, {args.batch} prompt(s) per call; s per image, fastest of {args.rounds}")
    say(f"{'':32}{'s':>9}{'usual /':>10}{'PSNR dB':>10}{'of 255':>8}")
    usual = measured.get("usual OpenVINO flow")
    for name, one in measured.items():
        psnr, difference = similarity(one.images, measured[FULL].images)
        times = f"{usual.seconds / one.seconds:.2f} x" if usual else "-"
        say(f"{name:32}{one.seconds:>9.3f}{times:>10}{psnr:>10.1f}{difference:>8.2f}")
    kind = {"bf16": "bf16", "f32": "float32"}[FAST]
    say(f"\n{best}: {100 * share:.0f} % of the {rate / 1e9:.0f} GFLOP/s of a {kind} matrix multiplication (UNet only)")


def main() -> None:
    """Measure and print one table."""
    args = parse()
    if not args.toyworld:
        from sd15 import make

        make(args.model)
    with tempfile.TemporaryDirectory(prefix="sdtune-bench-") as folder:
        scratch = Path(folder)
        job = train(args, scratch / "run")
        done = export.export(job)
        say(f"export: peak {done.peak_bytes / 1e9:.2f} GB for {done.model_bytes / 1e9:.2f} GB of float32 weights")
        if args.toyworld:
            distil_decoder(job, scratch / "tiny", seconds=60)
        else:
            AutoencoderTiny().save_pretrained(scratch / "tiny")  # random, like the networks
        measured = measure(job, args, scratch)
    print_table(job, args, measured)


if __name__ == "__main__":
    main()
