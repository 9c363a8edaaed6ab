"""How an image is denoised, and the presets of it that have a name."""

from dataclasses import dataclass
from typing import Literal

SchedulerName = Literal["pndm", "ddim", "dpmsolver++", "unipc", "euler", "euler_ancestral", "heun", "lcm"]
"""Schedulers by the names that a generation job uses; :mod:`sdtune.inference.generator` has their classes."""

MOST_SCHEDULED = 500
"""Steps of any scheduler. Models have 1,000 timesteps, and near that many steps some schedulers leave them."""

MOST_STEPS: dict[SchedulerName | None, int] = {"lcm": 50}
"""Schedulers that have a largest number of steps: distillation for lcm took 50."""

QualityName = Literal["exact", "fast", "draft"]
"""The presets."""


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """What denoising costs and how exact it is. A preset gives these values; a job may set each of them itself."""

    scheduler: SchedulerName | None
    """None: the model's own."""
    num_inference_steps: int
    """Denoising steps."""
    guidance_stop: float
    """Share of the denoising steps at which guidance ends."""
    cache_interval: int
    """Every so many evaluations of the UNet one is whole; 1: all are."""

    def __str__(self) -> str:
        """The values in words, for the reference page."""
        scheduler = self.scheduler or "the scheduler of the model"
        guided = "all of them" if self.guidance_stop == 1 else f"the first {self.guidance_stop:.0%}"
        whole = "each" if self.cache_interval == 1 else f"one of {self.cache_interval}"
        steps = f"{self.num_inference_steps} steps of {scheduler}, guidance in {guided}"
        return f"{steps}, {whole} with a whole evaluation of the UNet"


QUALITIES: dict[QualityName, Denoising] = {
    "exact": Denoising(scheduler=None, num_inference_steps=25, guidance_stop=1.0, cache_interval=1),
    "fast": Denoising(scheduler="dpmsolver++", num_inference_steps=25, guidance_stop=1.0, cache_interval=3),
    "draft": Denoising(scheduler="dpmsolver++", num_inference_steps=6, guidance_stop=1.0, cache_interval=1),
}
"""Points on or near the front of time against similarity in ``docs/performance.md``, of ``make bench-pictures``."""
