"""Validation pictures: the validation prompt, drawn with the networks as they are during training."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from sdtune.inference.images import contact_sheet
from sdtune.launch.run_folder import Run
from sdtune.methods.method import Method
from sdtune.models.family import Networks
from sdtune.settings import Job


def seeds_of_rank(count: int, rank: int, world_size: int) -> list[int]:
    """Which of the seeds 1 to ``count`` a rank draws. They are spread out, so that few of them are on one host."""
    return [seed for seed in range(1, count + 1) if (seed - 1) * world_size // count == rank]


def save_pictures(folder: Path, step: int, drawn: Sequence[tuple[int, Image.Image]]) -> None:
    """Write pictures to ``folder/step-<step>/seed-<seed>.png``, and a sheet of all of them to ``step-<step>.png``.

    Args:
        folder: ``validation/`` of the run.
        step: optimizer steps done.
        drawn: each picture with its seed.
    """
    target = folder / f"step-{step:06d}"
    target.mkdir(parents=True, exist_ok=True)
    for seed, picture in drawn:
        picture.save(target / f"seed-{seed}.png")
    contact_sheet([p for _, p in drawn], [f"seed {s}" for s, _ in drawn], columns=4).save(f"{target}.png")


class ValidationPictures:
    """Draws the job's validation prompt; does nothing if there is none."""

    def __init__(self, job: Job, networks: Networks, method: Method, accelerator: Accelerator) -> None:
        self._settings, self._resolution = job.validation, job.data.resolution
        self._folder = Run(job.run_dir).validation
        self._networks, self._method, self._accelerator = networks, method, accelerator
        self._steps: set[int] = set()

    def draw(self, step: int) -> None:
        """Draw and save the pictures of ``step``, once. Every rank calls this, and draws its share of the seeds."""
        if self._settings.prompt is None or step in self._steps:
            return
        self._steps.add(step)
        seeds = seeds_of_rank(
            self._settings.num_images, self._accelerator.process_index, self._accelerator.num_processes
        )
        mine: list[tuple[int, Image.Image]] = []
        if seeds:
            prompt = self._method.expand_prompt(self._settings.prompt)
            pictures = self._networks.draw(prompt, seeds, self._resolution, self._settings.guidance_scale)
            mine = list(zip(seeds, pictures, strict=True))
        drawn = gather_object(mine)
        if self._accelerator.is_main_process:
            save_pictures(self._folder, step, drawn)
