"""A loaded pipeline, PyTorch or OpenVINO, that generates images as a job asks for."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from sdtune.errors import BadInput
from sdtune.inference.evaluations import Cache, Evaluations
from sdtune.inference.tiny_autoencoder import load_tiny
from sdtune.models.pipelines import draw

SCHEDULERS: dict[str, tuple[str, dict[str, str]]] = {
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
"""The schedulers that a generation job may name: diffusers' class, and its options beside the model's own config."""


def set_scheduler(pipeline: Any, name: str | None) -> str:
    """Set the pipeline's scheduler by name, with the model's own noise schedule; returns the scheduler's class name.

    ``None`` leaves the model's own scheduler.
    """
    import diffusers

    if name is not None:
        cls, options = SCHEDULERS[name]
        pipeline.scheduler = getattr(diffusers, cls).from_config(pipeline.scheduler.config, **options)
    return type(pipeline.scheduler).__name__


class ImageGenerator:
    """A pipeline together with everything that a generation job says about how to generate."""

    def __init__(
        self,
        pipeline: Any,
        *,
        steps: int,
        guidance_scale: float,
        interval: tuple[float, float] = (0.0, 1.0),
        cache: Cache | None = None,
        scheduler: str | None = None,
        tiny_autoencoder: str | None = None,
        height: int,
        width: int,
    ) -> None:
        pipeline.set_progress_bar_config(disable=True)
        # prompts hold all tokens of a placeholder already; diffusers would add them once more
        pipeline.maybe_convert_prompt = lambda prompt, _: prompt
        self._pipeline = pipeline
        self.scheduler = set_scheduler(pipeline, scheduler)
        partly = interval if guidance_scale > 1 and interval != (0.0, 1.0) else None
        # without a way to compute less, the pipeline evaluates its UNet itself
        self._evaluations = Evaluations(pipeline, interval=partly, cache=cache) if partly or cache else None
        self._tiny = load_tiny(tiny_autoencoder) if tiny_autoencoder else None
        self._options = {
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "height": height,
            "width": width,
            "output_type": "latent" if self._tiny else "np",
        }

    @torch.no_grad()
    def generate(
        self, prompts: list[str], seeds: list[int], negative: str = "", per_prompt: int = 1
    ) -> list[Image.Image]:
        """``per_prompt`` images for each prompt, one for each seed.

        Raises:
            BadInput: the model's output is not finite, which would be drawn as black.
        """
        if self._evaluations:
            self._evaluations.begin()
        # a pipeline knows best what stands for no negative prompt: Stable Diffusion XL's takes zeros
        negatives = [negative] * len(prompts) if negative else None
        options = {"negative_prompt": negatives, "num_images_per_prompt": per_prompt, **self._options}
        output: Any = draw(self._pipeline, prompts, seeds, **options)
        processor = self._pipeline.image_processor
        if self._tiny is not None:
            decoded = self._tiny.decode(output.float() / self._tiny.config.scaling_factor).sample
            output = processor.postprocess(decoded, output_type="np")
        if not np.isfinite(output).all():
            raise BadInput("the model's output is not finite; try another scheduler, or precision f32")
        images: list[Image.Image] = processor.numpy_to_pil(output)
        return images
