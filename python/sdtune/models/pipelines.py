"""Whole pipelines: saving one that knows the word, and drawing with the networks that are being trained with."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizerFast

from sdtune.files import replace_folder, write_atomically
from sdtune.inference.images import contact_sheet
from sdtune.methods.textual_inversion import add_placeholder, expand_placeholder
from sdtune.settings import Job

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    from sdtune.models.sd import Frozen

_KEPT = ("*.json", "*.txt", "*.model", "*.safetensors")


def assemble(**parts: object) -> "StableDiffusionPipeline":
    """A pipeline of ``vae``, ``unet``, ``text_encoder``, ``tokenizer`` and ``scheduler``, without a safety checker."""
    from diffusers import StableDiffusionPipeline  # most runs draw nothing, and it takes long to import

    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _copy_part(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in sorted({p for pattern in _KEPT for p in source.glob(pattern)}):
        shutil.copyfile(path, target / path.name)


def save_full_pipeline(model: Path, target: Path, placeholder: str, rows: torch.Tensor) -> None:
    """Write a copy of ``model`` whose tokenizer and text encoder know the word; whole or not at all.

    Everything else is copied file by file: bit-identical, and never in memory. The text encoder is written in float32,
    whatever it was stored in, since the rows were learned in float32.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for part in sorted(p for p in model.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if part.name not in ("text_encoder", "tokenizer"):
            _copy_part(part, temporary / part.name)
    # a part that was not fetched, the safety checker as a rule, is no part of the copy
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    for name, value in index.items():
        if isinstance(value, list) and not (model / name).is_dir():
            index[name] = [None, None]
    if index.get("safety_checker", [None])[0] is None:
        index["requires_safety_checker"] = False
    write_atomically(temporary / "model_index.json", json.dumps(index, indent=2) + "\n")

    tokenizer = CLIPTokenizerFast.from_pretrained(model, subfolder="tokenizer")
    ids = add_placeholder(tokenizer, placeholder, len(rows))
    text_encoder = CLIPTextModel.from_pretrained(
        model, subfolder="text_encoder", dtype=torch.float32, use_safetensors=True
    )
    text_encoder.resize_token_embeddings(max(len(tokenizer), text_encoder.config.vocab_size), mean_resizing=False)
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight[ids] = rows.detach().float()
    tokenizer.save_pretrained(temporary / "tokenizer")
    text_encoder.save_pretrained(temporary / "text_encoder")
    replace_folder(temporary, target)


def draw(pipeline: "DiffusionPipeline", prompts: list[str], seeds: list[int], **options: object) -> list[Image.Image]:
    """One picture for each prompt, from the noise of its own seed, so that grouping does not change a picture."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pictures: list[Image.Image] = pipeline(prompts, generator=generators, **options).images
    return pictures


def seeds_of_rank(count: int, rank: int, world_size: int) -> list[int]:
    """Which of the seeds 1 to ``count`` a rank draws: spread out, so that few of them fall on one host."""
    return [seed for seed in range(1, count + 1) if (seed - 1) * world_size // count == rank]


@torch.no_grad()
def draw_validation(job: Job, frozen: "Frozen", seeds: list[int]) -> list[tuple[int, Image.Image]]:
    """Draw the job's validation prompt as it looks now: one picture for each of ``seeds``, with its seed."""
    if not seeds:
        return []
    from diffusers import AutoencoderKL, PNDMScheduler  # most runs draw nothing

    unet = frozen.unet
    vae = AutoencoderKL.from_pretrained(job.model.path, subfolder="vae", torch_dtype=unet.dtype, use_safetensors=True)
    scheduler = PNDMScheduler.from_pretrained(job.model.path, subfolder="scheduler")
    pipeline = assemble(
        vae=vae, unet=unet, text_encoder=frozen.text_encoder, tokenizer=frozen.tokenizer, scheduler=scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt = expand_placeholder(job.validation.prompt or "", job.data.placeholder_token, job.data.num_vectors)
    options = {
        "height": job.data.resolution,
        "width": job.data.resolution,
        "num_inference_steps": 25,
        "guidance_scale": job.validation.guidance_scale,
    }
    # the float32 rows make the text encoder pass for a float32 one, so the pipeline hands the bf16 UNet float32 latents
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=unet.dtype == torch.bfloat16):
        return [(seed, draw(pipeline, [prompt], [seed], **options)[0]) for seed in seeds]


def save_validation(folder: Path, step: int, drawn: list[tuple[int, Image.Image]]) -> None:
    """Write the pictures to ``folder/step-<step>/seed-<seed>.png``, and all on one sheet to ``step-<step>.png``."""
    target = folder / f"step-{step:06d}"
    target.mkdir(parents=True, exist_ok=True)
    for seed, picture in drawn:
        picture.save(target / f"seed-{seed}.png")
    contact_sheet([p for _, p in drawn], [f"seed {s}" for s, _ in drawn], columns=4).save(f"{target}.png")
