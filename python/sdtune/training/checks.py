"""Checks before a job starts: model, pictures, method, disk, memory, run folder, number of ranks. Changes nothing."""

import shutil
from pathlib import Path

from sdtune.data.picture_warnings import picture_warnings
from sdtune.data.pictures import list_pictures, picture_problems
from sdtune.errors import BadInput, refuse
from sdtune.files import nearest_folder
from sdtune.inference.memory import export_bytes, read_size
from sdtune.launch import variables
from sdtune.launch.run_folder import Run
from sdtune.methods.registry import method_of
from sdtune.models.family import Family
from sdtune.models.registry import family_of
from sdtune.models.weights import cache_folder, check_cache
from sdtune.settings import Job
from sdtune.settings.fields import settings_of
from sdtune.sizes import sizes
from sdtune.training.class_pictures import check_class_pictures, class_picture_warnings
from sdtune.training.memory import check_memory

_SMALL_FILES = 10_000_000
"""Bytes of metrics, logs and learned parameters."""
_UNSEEN = 1e-4
"""Change of a learned number, all steps together, below which nothing is learned."""


def _check_disk_space(job: Job, family: Family) -> None:
    needed, what, remedy = _SMALL_FILES, "", ""
    if job.training.save_as_full_pipeline:
        pipeline, copy = family.weight_bytes(Path(job.model.path)), export_bytes(job, read_size(Path(job.model.path)))
        needed += pipeline + copy
        pipeline_text, copy_text = sizes(pipeline, copy)
        what = f" (its pipeline {pipeline_text}, the OpenVINO copy and its conversion {copy_text})"
        remedy = ", or leave both out with save_as_full_pipeline: false"
    folder = nearest_folder(Path(job.run_dir))
    free = shutil.disk_usage(folder).free
    if free < needed:
        free_text, needed_text = sizes(free, needed)
        raise BadInput(
            f"run_dir: {folder} has {free_text} free, but the run will write {needed_text}{what}; make room, choose "
            f"another folder{remedy}"
        )


def launched_world_size() -> int:
    """How many ranks the launcher started, from the variables that Accelerate reads, in its order."""
    return variables.first(variables.SIZE, 1)


def check_world_size(job: Job) -> None:
    """Check that the launcher started as many ranks as the job asks for.

    Raises:
        BadInput: it did not; the message has both numbers.
    """
    launched, asked = launched_world_size(), job.training.world_size
    if asked is not None and launched != asked:
        raise BadInput(
            f"the job asks for {asked} ranks (training.world_size) but {launched} were started; "
            f"start it with launch.sh in the run folder, or change the job"
        )


def _check_place(job: Job) -> None:
    """Refuse a run folder among the pictures, of which its files would be some, or in the model."""
    run = Path(job.run_dir).resolve()
    for setting, folder, what in (("data.path", job.data.path, "pictures"), ("model.path", job.model.path, "model")):
        if Path(folder).resolve() in (run, *run.parents):
            raise BadInput(f"run_dir: {job.run_dir} lies in the folder of the {what} ({setting}); choose another")


def warmup_warnings(job: Job) -> list[str]:
    """A warm-up that has no effect, or takes as long as the run, so that its learning rate is never reached."""
    settings = job.training
    if settings.lr_warmup_steps and settings.lr_scheduler == "constant":
        return ["training.lr_warmup_steps: lr_scheduler constant has no warm-up; constant_with_warmup has one"]
    if settings.lr_warmup_steps < settings.max_train_steps:
        return []
    return [
        f"training.lr_warmup_steps: the warm-up takes {settings.lr_warmup_steps} steps and the run "
        f"{settings.max_train_steps} (max_train_steps), so the learning rate stays below what is asked for"
    ]


def pair_warnings(job: Job) -> list[str]:
    """Pairs of opposite noise whose samples are in different steps, where nothing of them cancels."""
    settings = job.training
    ranks = settings.world_size or launched_world_size()
    batch = settings.train_batch_size * settings.gradient_accumulation_steps * ranks
    if not settings.noise_pairs or batch % 2 == 0:
        return []
    return [
        f"training.noise_pairs: the global batch is {batch}, so the two samples of "
        f"{'a pair are never' if batch == 1 else 'some pairs are not'} in one step; use an even global batch"
    ]


def picture_sides(job: Job) -> dict[str, int]:
    """The sizes of pictures that a job asks for: {setting: pixels}."""
    sides = {"data.resolution": job.data.resolution}
    asked = {"openvino.height": job.openvino.height, "openvino.width": job.openvino.width}
    return sides | {name: side for name, side in asked.items() if side is not None}


def rate_warnings(job: Job) -> list[str]:
    """Learning rates with which a run changes nothing that a model could notice.

    AdamW moves a number by about its rate in each step, and the numbers of embeddings and adapters are about 0.01.
    """
    steps, batch = job.training.max_train_steps, 1
    if job.training.scale_lr:
        batch = (
            job.training.train_batch_size * job.training.gradient_accumulation_steps * (job.training.world_size or 1)
        )
    return [
        f"{setting.key}: {rate:g} moves what is learned by {rate * batch * steps:.0e} at most in {steps} steps, which "
        f"changes nothing that can be seen; {setting.default:g} is usual"
        for section in (job.training, job.lora)
        for setting in settings_of(type(section))
        if setting.name == "learning_rate" and setting.is_for(job.method)
        if (rate := section.learning_rate) * batch * steps < _UNSEEN
    ]


def check_job(job: Job, ranks: int | None = None) -> list[str]:
    """Check everything that can be checked on one host without loading networks.

    Args:
        job: the job.
        ranks: of this host; None: those that the launcher has started here, or one before the launch.

    Returns:
        Warnings for the user.

    Raises:
        BadInput: the first problem, with the remedy.
    """
    family = family_of(job.model.path)
    family.check(Path(job.model.path), picture_sides(job))
    method = method_of(job)
    refuse("data.path", [*picture_problems(list_pictures(job.data.path)), *method.caption_problems(job, family)])
    warnings = [*method.check(job, family), *rate_warnings(job), *warmup_warnings(job), *pair_warnings(job)]
    check_class_pictures(job)
    _check_place(job)
    check_cache(cache_folder(job))
    _check_disk_space(job, family)
    check_memory(job, family, variables.first(variables.LOCAL_SIZE, 1) if ranks is None else ranks)
    Run(job.run_dir).check_writable(overwrite=job.overwrite, resume=job.training.resume_from_checkpoint is not None)
    return warnings


def check_inputs(job: Job, ranks: int | None = None) -> list[str]:
    """:func:`check_job` before the launch, which looks at each picture too.

    Returns:
        Warnings for the user.

    Raises:
        BadInput: the first problem, with the remedy.
    """
    warnings = check_job(job, ranks)
    return [*warnings, *picture_warnings(list_pictures(job.data.path), job.data), *class_picture_warnings(job)]
