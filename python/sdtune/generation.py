"""Pictures from a finished run: every prompt with every seed, each file telling how it was made."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, PngImagePlugin

from sdtune.config import GenerationJob
from sdtune.embedding import expand_placeholder, load_rows
from sdtune.errors import BadInput
from sdtune.images import contact_sheet
from sdtune.openvino import StaticShape, load_static, static_shape
from sdtune.pipelines import draw
from sdtune.runs import Run, replace_folder


@dataclass(frozen=True)
class Request:
    """One picture that is asked for."""

    prompt: str
    seed: int


def calls(requests: list[Request], shape: StaticShape) -> list[list[Request]]:
    """Group requests into calls of a static pipeline.

    Each call holds ``batch_size`` groups of ``num_images_per_prompt`` requests of one prompt; what is missing in a
    group or a call is filled with its last request, and drawn for nothing.
    """
    per_prompt, groups = shape.num_images_per_prompt, []
    for prompt in dict.fromkeys(r.prompt for r in requests):
        same = [r for r in requests if r.prompt == prompt]
        for i in range(0, len(same), per_prompt):
            group = same[i : i + per_prompt]
            groups.append(group + [group[-1]] * (per_prompt - len(group)))
    result = []
    for i in range(0, len(groups), shape.batch_size):
        batch = groups[i : i + shape.batch_size]
        batch += [batch[-1]] * (shape.batch_size - len(batch))
        result.append([request for group in batch for request in group])
    return result


def _metadata(fields: dict[str, Any]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in fields.items():
        info.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    return info


def generate(job: GenerationJob) -> list[Path]:
    """Draw all that is asked for into ``images/`` of the run, with a contact sheet; the folder is replaced as a whole.

    Returns:
        The pictures' files, prompt by prompt, and last the contact sheet.

    Raises:
        BadInput: the run has not learned or exported what is needed.
    """
    run = Run(job.run_dir)
    run.require_learned()
    placeholder, rows = load_rows(run.learned)
    for prompt in job.prompts:
        if placeholder not in prompt:
            print(f"warning: the prompt {prompt!r} does not hold the learned word {placeholder}", flush=True)
    options = {"num_inference_steps": job.num_inference_steps, "guidance_scale": job.guidance_scale}
    if job.source == "openvino":
        pipeline = load_static(run.openvino)
        shape = static_shape(pipeline)
        if job.guidance_scale <= 1:
            raise BadInput(
                f"guidance_scale: {job.guidance_scale} is no guidance, which the static UNet is made for; "
                f"take a value above 1, or source: pipeline"
            )
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(
            run.pipeline, torch_dtype=torch.float32, use_safetensors=True
        )
        side = int(run.facts()["resolution"])
        shape = StaticShape(batch_size=1, num_images_per_prompt=1, height=side, width=side)
    pipeline.set_progress_bar_config(disable=True)

    requests = [Request(prompt, seed) for prompt in job.prompts for seed in job.seeds]
    drawn: dict[Request, Image.Image] = {}
    for number, call in enumerate(todo := calls(requests, shape), 1):
        prompts = [expand_placeholder(r.prompt, placeholder, len(rows)) for r in call[:: shape.num_images_per_prompt]]
        pictures = draw(
            pipeline,
            prompts,
            [r.seed for r in call],
            num_images_per_prompt=shape.num_images_per_prompt,
            negative_prompt=[job.negative_prompt] * len(prompts),
            height=shape.height,
            width=shape.width,
            **options,
        )
        drawn.update(zip(call, pictures, strict=True))
        print(f"{number}/{len(todo)}", flush=True)

    folder = run.images.with_name(f".{run.images.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = []
    for i, request in enumerate(requests):
        name = f"{i:04d}-seed{request.seed}.png"
        facts = {
            "prompt": request.prompt,
            "negative_prompt": job.negative_prompt,
            "seed": request.seed,
            "source": job.source,
            **options,
            "software": "sdtune",
        }
        drawn[request].save(folder / name, pnginfo=_metadata(facts))
        names.append(name)
    sheet = contact_sheet(
        [drawn[r] for r in requests], [f"{r.prompt} (seed {r.seed})" for r in requests], len(job.seeds)
    )
    sheet.save(folder / "contact_sheet.png")
    replace_folder(folder, run.images)
    return [run.images / name for name in (*names, "contact_sheet.png")]
