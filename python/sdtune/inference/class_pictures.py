"""Class pictures of prior preservation, as a job for the worker pool: the base model draws them, and hosts keep them.

They are in a folder that is named by a hash of everything that they depend on. Picture n has the seed n + 1, so a job
that asks for more of them needs only the new ones, and an interrupted call loses none.
"""

import hashlib
import json
from pathlib import Path

from sdtune.errors import BadInput
from sdtune.inference.plan import Plan
from sdtune.launch.run_folder import Run
from sdtune.models.weights import cache_folder
from sdtune.settings import GenerationJob, Job, build

GUIDANCE_SCALE = 7.5
STEPS = 25


def class_folder(job: Job) -> Path:
    """The folder on this host for class pictures that the model draws; its ``drawn/`` holds them."""
    from sdtune.models.registry import family_of  # torch takes seconds to import

    model = family_of(job.model.path).fingerprint(Path(job.model.path))
    made_of = [model, job.prior.class_prompt, job.data.resolution, job.training.mixed_precision, GUIDANCE_SCALE, STEPS]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    return cache_folder(job) / "class-pictures" / digest


def class_files(job: Job) -> list[Path]:
    """The files of all class pictures that a job asks for, there or not; named as a plan names them."""
    drawn = Run(class_folder(job)).drawn
    return [drawn / f"{number:04d}-seed{number + 1}.png" for number in range(job.prior.num_class_images)]


def class_generation(job: Job) -> GenerationJob:
    """The job that draws them.

    Raises:
        BadInput: the training job draws no class pictures.
    """
    prior = job.prior
    if not prior.preservation or prior.class_path is not None:
        raise BadInput("prior: this job draws no class pictures; it has no prior preservation, or a prior.class_path")
    return build(
        GenerationJob,
        {
            "run_dir": str(class_folder(job)),
            "source": "model",
            "model": job.model.path,
            "prompts": [prior.class_prompt],
            "seeds": [number + 1 for number in range(prior.num_class_images)],
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE_SCALE,
            "precision": "bf16" if job.training.mixed_precision == "bf16" else "f32",
            "height": job.data.resolution,
            "width": job.data.resolution,
        },
    )


def there(plan: Plan, folder: Path) -> set[int]:
    """Numbers of the batches of a plan that need not be drawn: all their pictures are in ``folder``."""
    return {n for n in range(len(plan.batches)) if all((folder / name).is_file() for name in plan.names(n))}
