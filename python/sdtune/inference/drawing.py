"""Drawing with a loaded pipeline, of torch or of OpenVINO, and the ways to do it with fewer operations."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from sdtune.errors import BadInput
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
    """Give the pipeline the scheduler of that name with the model's own noise schedule; returns its class's name."""
    import diffusers

    if name is not None:
        cls, options = SCHEDULERS[name]
        pipeline.scheduler = getattr(diffusers, cls).from_config(pipeline.scheduler.config, **options)
    return type(pipeline.scheduler).__name__


class GuidanceInterval:
    """Leaves the negative half of a UNet evaluation out where the steps are not guided.

    It stands in for the UNet's ``forward``. The pipeline hands over both halves at every step and weighs the outputs
    as ``negative + scale * (positive - negative)``; without guidance it gets the positive output twice, which is that
    sum. The halves of a guided step are computed one after the other, so the UNet has one batch size at all steps.
    """

    def __init__(self, pipeline: Any, start: float, stop: float) -> None:
        self._pipeline, self._start, self._stop = pipeline, start, stop
        self._forward = pipeline.unet.forward
        self._done = 0
        self.rows = 0
        """Rows that were computed; a picture with full guidance takes two at each evaluation."""
        pipeline.unet.forward = self

    def begin(self) -> None:
        """Count a new call's evaluations from 0."""
        self._done = 0

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any) -> tuple[Any]:
        """``sample`` [2 n, ...] and what belongs to it, the negative half first -> as many outputs."""
        share = self._done / len(self._pipeline.scheduler.timesteps)
        self._done += 1
        half = len(sample) // 2
        halves = [slice(0, half), slice(half, None)] if self._start <= share < self._stop else [slice(half, None)]
        outputs = [self._forward(sample[h], timestep, encoder_hidden_states[h], **options)[0] for h in halves]
        self.rows += half * len(halves)
        return (torch.cat([outputs[0], outputs[-1]]),)


class Artist:
    """A pipeline with all that a generation job says of how to draw."""

    def __init__(
        self,
        pipeline: Any,
        *,
        steps: int,
        guidance_scale: float,
        interval: tuple[float, float] = (0.0, 1.0),
        scheduler: str | None = None,
        tiny_autoencoder: str | None = None,
        height: int,
        width: int,
    ) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self.scheduler = set_scheduler(pipeline, scheduler)
        guided = guidance_scale > 1
        self._interval = GuidanceInterval(pipeline, *interval) if guided and interval != (0.0, 1.0) else None
        self._tiny = load_tiny(tiny_autoencoder) if tiny_autoencoder else None
        self._options = {
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "height": height,
            "width": width,
            "output_type": "latent" if self._tiny else "pil",
        }

    @torch.no_grad()
    def draw(self, prompts: list[str], seeds: list[int], negative: str = "", per_prompt: int = 1) -> list[Image.Image]:
        """``per_prompt`` pictures for each prompt, one for each seed."""
        if self._interval:
            self._interval.begin()
        options = {"negative_prompt": [negative] * len(prompts), "num_images_per_prompt": per_prompt, **self._options}
        drawn: Any = draw(self._pipeline, prompts, seeds, **options)
        if self._tiny is None:
            return list(drawn)
        pictures = self._tiny.decode(drawn.float() / self._tiny.config.scaling_factor).sample
        result: list[Image.Image] = self._pipeline.image_processor.postprocess(pictures, output_type="pil")
        return result


def load_tiny(folder: str) -> AutoencoderTiny:
    """The small decoder of previews.

    Raises:
        BadInput: the folder holds none.
    """
    if not (Path(folder) / "config.json").is_file() or not any(Path(folder).glob("*.safetensors")):
        raise BadInput(
            f"tiny_autoencoder: {folder} holds no AutoencoderTiny (config.json and a .safetensors file); "
            f"name a folder that does, or leave it out"
        )
    return AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).eval()


def likeness(pictures: list[Image.Image], others: list[Image.Image]) -> tuple[float, float]:
    """How like pairs of pictures are: peak signal-to-noise ratio in dB (inf: the same), mean difference of 255 levels.

    The ratio is of all pairs together: 20 dB is a visible difference, from 35 dB on it takes a second look.
    """
    a = np.stack([np.asarray(p.convert("RGB"), np.float64) for p in pictures])
    b = np.stack([np.asarray(p.convert("RGB"), np.float64) for p in others])
    square = float(((a - b) ** 2).mean())
    return float("inf") if square == 0 else 10 * float(np.log10(255**2 / square)), float(np.abs(a - b).mean())
