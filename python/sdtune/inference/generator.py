"""A loaded pipeline, PyTorch or OpenVINO, that generates images, and the ways to do it with fewer operations."""

from pathlib import Path
from typing import Any

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
    """Set the pipeline's scheduler by name, with the model's own noise schedule; returns the scheduler's class name.

    ``None`` leaves the model's own scheduler.
    """
    import diffusers

    if name is not None:
        cls, options = SCHEDULERS[name]
        pipeline.scheduler = getattr(diffusers, cls).from_config(pipeline.scheduler.config, **options)
    return type(pipeline.scheduler).__name__


class GuidanceInterval:
    """Skips the unconditional half of a UNet evaluation at steps outside of the guidance interval (arXiv 2404.07724).

    It replaces the UNet's ``forward``. At every step the pipeline passes both halves, and combines the outputs as
    ``negative + scale * (positive - negative)``. Outside of the interval it gets the positive output twice, and so that
    sum is the positive output. The halves of a guided step are computed one after the other, so that the UNet has the
    same batch size at all steps.
    """

    def __init__(self, pipeline: Any, start: float, stop: float) -> None:
        self._pipeline, self._start, self._stop = pipeline, start, stop
        self._forward = pipeline.unet.forward
        self._evaluations = 0
        self.samples = 0
        """Samples that the UNet computed; with full guidance an image takes two at each evaluation."""
        pipeline.unet.forward = self

    def begin(self) -> None:
        """Count the evaluations of a new call from 0."""
        self._evaluations = 0

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any) -> tuple[Any]:
        """``sample`` [2 n, ...] and its conditioning, the negative half first -> output of the same shape."""
        share = self._evaluations / len(self._pipeline.scheduler.timesteps)
        self._evaluations += 1
        half = len(sample) // 2
        halves = [slice(0, half), slice(half, None)] if self._start <= share < self._stop else [slice(half, None)]
        outputs = [self._forward(sample[h], timestep, encoder_hidden_states[h], **_part(options, h))[0] for h in halves]
        self.samples += half * len(halves)
        return (torch.cat([outputs[0], outputs[-1]]),)


def _part(options: Any, part: slice) -> Any:
    """Arguments of some samples: tensors are cut, in dictionaries too; what is no tensor is the same for all."""
    if isinstance(options, dict):
        return {name: _part(value, part) for name, value in options.items()}
    return options[part] if isinstance(options, torch.Tensor) else options


class ImageGenerator:
    """A pipeline together with everything that a generation job says about how to generate."""

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
        # prompts hold all tokens of a placeholder already; diffusers would add them once more
        pipeline.maybe_convert_prompt = lambda prompt, _: prompt
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
    def generate(
        self, prompts: list[str], seeds: list[int], negative: str = "", per_prompt: int = 1
    ) -> list[Image.Image]:
        """``per_prompt`` images for each prompt, one for each seed."""
        if self._interval:
            self._interval.begin()
        # a pipeline knows best what stands for no negative prompt: Stable Diffusion XL's takes zeros
        negatives = [negative] * len(prompts) if negative else None
        options = {"negative_prompt": negatives, "num_images_per_prompt": per_prompt, **self._options}
        output: Any = draw(self._pipeline, prompts, seeds, **options)
        if self._tiny is None:
            return list(output)
        decoded = self._tiny.decode(output.float() / self._tiny.config.scaling_factor).sample
        images: list[Image.Image] = self._pipeline.image_processor.postprocess(decoded, output_type="pil")
        return images


def load_tiny(folder: str) -> AutoencoderTiny:
    """Load the small decoder for previews.

    Raises:
        BadInput: the folder holds none.
    """
    if not (Path(folder) / "config.json").is_file() or not any(Path(folder).glob("*.safetensors")):
        raise BadInput(
            f"tiny_autoencoder: {folder} holds no AutoencoderTiny (config.json and a .safetensors file); "
            f"name a folder that does, or leave the setting out"
        )
    return AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).eval()
