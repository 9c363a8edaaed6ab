"""What the benchmark of pictures compares: a trained run, ways to generate with it, and the points of the sweep."""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from contenders import say
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from PIL import Image

from sdtune.host.processor import has_bf16
from sdtune.inference.draw import load_generator
from sdtune.inference.plan import make_plan
from sdtune.launch.run_folder import Run
from sdtune.methods.formats import save_embeddings
from sdtune.methods.textual_inversion import save_full_pipeline
from sdtune.models.pipelines import draw
from sdtune.settings import (
    QUALITIES,
    DataArgs,
    GenerationJob,
    Job,
    ModelArgs,
    OpenVINOArgs,
    TrainingArgs,
    ValidationArgs,
)
from sdtune.training.ranks import sign
from toyworld.captions import examples
from toyworld.drawings import draw_toy

REPOSITORY = Path(__file__).parents[2]
FAST = "bf16" if has_bf16() else "f32"
"""Precision of all contenders but the full run; the usual flow uses it by default."""
FULL = "sdtune, full, f32"
"""The reference of similarity."""
USUAL = "usual OpenVINO flow"
"""The reference of time."""
PLAIN = "sdtune, " + FAST
"""What every other point changes something of."""
Call = Callable[[list[str], list[int]], list[Image.Image]]
"""Generates a picture for each prompt and seed."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way to generate with sdtune."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of the generation job."""
    weights: str = "fp16"
    """Of the export."""

    @property
    def name(self) -> str:
        """What differs from the plain way, in words."""
        s = self.settings
        if "quality" in s:
            return f"quality {s['quality']}"
        words = [{"dpmsolver++": "DPM++", "lcm": "LCM"}[s["scheduler"]]] if "scheduler" in s else []
        words += [f"{s['num_inference_steps']} steps"] if "num_inference_steps" in s else []
        words += [f"cache {s['cache_interval']}/{s.get('cache_branch', 0)}"] if "cache_interval" in s else []
        start, stop = s.get("guidance_start", 0), s.get("guidance_stop", 1)
        words += [f"guided {start} to {stop}"] if (start, stop) != (0, 1) else []
        words += ["tiny decoder"] if "tiny_autoencoder" in s else []
        words += [self.weights] if self.weights != "fp16" else []
        return ", ".join(words) or PLAIN

    def possible(self, steps: int) -> bool:
        """Whether it makes sense in a comparison of so many steps: presets have their own number."""
        s = self.settings
        return s.get("cache_interval", 1) <= s.get("num_inference_steps", steps) and ("quality" not in s or steps == 25)


def ways(steps: tuple[int, ...], scratch: Path) -> Iterator[Point]:
    """Each way to save operations by itself, and few together; ``steps``: other numbers of steps to try."""
    dpm = {"scheduler": "dpmsolver++"}
    tiny = {"tiny_autoencoder": str(scratch / "tiny")}
    for one in ({}, dpm, {"guidance_stop": 0.75}, {"guidance_stop": 0.5}, {"guidance_start": 0.1, "guidance_stop": 0.6},
                tiny, dpm | {"guidance_stop": 0.5}):  # fmt: skip
        yield Point(settings=one)
    for count in steps:
        yield Point(settings=dpm | {"num_inference_steps": count})
    for interval, branch in ((2, 0), (2, 1), (3, 0), (5, 0)):
        yield Point(settings={"cache_interval": interval, "cache_branch": branch})
    yield from qualities()
    for weights in ("int8", "hybrid"):
        for one in ({}, dpm | {"guidance_stop": 0.5}):
            yield Point(settings=one, weights=weights)


def qualities() -> Iterator[Point]:
    """The presets."""
    for name in QUALITIES:
        yield Point(settings={"quality": name})


def sweep() -> Iterator[Point]:
    """Combinations of scheduler, steps, cache, guidance interval and weights, among them the presets."""
    yield from qualities()
    pairs = ((2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (5, 0))
    caches: dict[Any, dict[str, Any]] = {n_b: {"cache_interval": n_b[0], "cache_branch": n_b[1]} for n_b in pairs}
    caches[""] = {}
    dpm = {"scheduler": "dpmsolver++"}
    for how, keys in (
        ({}, ["", (2, 0), (3, 0)]),
        (dpm, caches),
        (dpm | {"num_inference_steps": 20}, ["", (2, 0), (3, 0)]),
        (dpm | {"num_inference_steps": 16}, ["", (2, 0), (3, 0)]),
        (dpm | {"num_inference_steps": 12}, ["", (2, 0)]),
        *((dpm | {"num_inference_steps": count}, [""]) for count in (10, 8, 7, 6)),
        (dpm | {"guidance_stop": 0.75}, ["", (3, 0)]),
    ):
        for key in keys:
            yield Point(settings=how | caches[key])
    for weights in ("int8", "hybrid"):
        for key in ("", (3, 0)):
            yield Point(settings=dpm | caches[key], weights=weights)


# --- ways to generate ------------------------------------------------------------------------------------------------


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
    facts = {"run_name": job.run_name, "steps": 1, "world_size": 1, "resolution": args.size}
    run.finish({**facts, **sign(Accelerator(cpu=True), samples=0)}, [run.learned])
    return job


def usual_flow(job: Job, folder: Path, args: argparse.Namespace) -> Call:
    """Export, make static, save, load, generate, as tutorials do."""
    from optimum.intel import OVStableDiffusionPipeline

    pipeline = OVStableDiffusionPipeline.from_pretrained(Run(job.run_dir).pipeline, export=True, compile=False)
    pipeline.reshape(batch_size=args.batch, height=args.size, width=args.size, num_images_per_prompt=1)
    pipeline.save_pretrained(folder)
    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, compile=True)
    shape = pipeline.unet.model.input("sample").get_partial_shape()
    say(f"the usual flow: the UNet's input after reload is {shape}")
    pipeline.set_progress_bar_config(disable=True)
    return lambda prompts, seeds: draw(pipeline, prompts, seeds, **args.options)


def plain(job: Job, dtype: torch.dtype, args: argparse.Namespace) -> Call:
    """Diffusers without changes."""
    pipeline = StableDiffusionPipeline.from_pretrained(Run(job.run_dir).pipeline, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.text_encoder.to(dtype)
    return lambda prompts, seeds: draw(pipeline, prompts, seeds, **args.options)


def ours(job: Job, args: argparse.Namespace, **values: Any) -> Call:
    """What generate_images.py does, without writing files."""
    fixed = {} if "quality" in values else {"num_inference_steps": args.steps}
    asked = GenerationJob(
        run_dir=job.run_dir,
        prompts=args.prompts,
        seeds=[1],
        guidance_scale=args.guidance,
        **(fixed | {"precision": FAST} | values),
    )
    plan = make_plan(asked)
    generator = load_generator(asked, plan, sum(map(len, plan.cores)))
    return generator.generate


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
