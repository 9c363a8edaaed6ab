"""The identity of a run: the settings and inputs that a checkpoint's run and the resumed run must have in common."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdtune.data.caption_files import caption_files
from sdtune.data.pictures import list_pictures
from sdtune.errors import BadInput
from sdtune.models.registry import family_of
from sdtune.settings import Job
from sdtune.settings.fields import Settings, sections_of, settings_of

# settings that a resumed run may change, because they do not change what is learned
_MAY_CHANGE = (
    "path",
    "backend",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "report_to",
    "resume_from_checkpoint",
    "resume_reshard",
    "save_as_full_pipeline",
    "collective_timeout",
)
# settings that resume_reshard allows to change: how a global batch is divided into ranks, micro-steps and batches
_RESHARDED = ("world_size", "train_batch_size", "gradient_accumulation_steps")
_DEFAULTS = {s.name: s.default for section in sections_of(Job) for s in settings_of(section)}


def pictures_fingerprint(folder: str | Path) -> str:
    """A hash of the name and content of every picture and every caption file."""
    digest = hashlib.sha256()
    for path in [*list_pictures(folder), *caption_files(Path(folder))]:
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run_identity(job: Job, world_size: int) -> dict[str, Any]:
    """Everything that determines what a run learns."""
    excluded = set(_MAY_CHANGE)
    adapters = _used(job.lora, job.method)
    if job.training.lr_scheduler in ("constant", "constant_with_warmup") and "token_share" not in adapters:
        excluded.add("max_train_steps")  # nothing depends on the number of steps
    settings = {**_used(job.data, job.method), **_used(job.training, job.method), "world_size": world_size}
    return {
        "method": job.method,
        "model": family_of(job.model.path).fingerprint(Path(job.model.path)),
        "pictures": pictures_fingerprint(job.data.path),
        "seed": job.seed,
        "software_stack": job.software_stack,
        **{key: value for key, value in settings.items() if key not in excluded},
        **{f"lora.{key}": value for key, value in adapters.items()},
        **{f"prior.{key}": value for key, value in _used(job.prior, job.method).items() if key != "class_path"},
        **({"class_pictures": pictures_fingerprint(job.prior.class_path)} if job.prior.class_path else {}),
    }


def _used(section: Settings, method: str) -> dict[str, Any]:
    """The settings of a section that a method uses."""
    return {s.name: getattr(section, s.name) for s in settings_of(type(section)) if s.is_for(method)}


def check_same_run(path: Path, saved: Mapping[str, Any], ours: Mapping[str, Any], *, reshard: bool) -> bool:
    """Check that a checkpoint belongs to this run.

    Args:
        path: of the checkpoint, for the message.
        saved: identity in the checkpoint.
        ours: identity of this run.
        reshard: allow another number of ranks, batch size and gradient accumulation.

    Returns:
        Whether anything that ``reshard`` allows is different.

    Raises:
        BadInput: anything else is different.
    """
    # a setting that the saved run's version did not have is as if it had its default
    differing = [key for key in ours if saved.get(key, _DEFAULTS.get(key)) != ours[key]]
    for key in differing:
        if reshard and key in _RESHARDED:
            continue
        remedy = "put it back, or start without resume_from_checkpoint"
        if key in _RESHARDED:
            remedy = "put it back, or allow it with resume_reshard: true"
        raise BadInput(
            f"checkpoint {path} is of another run: its {key} is {saved.get(key)!r}, this job's is {ours[key]!r}; "
            f"{remedy}"
        )
    return bool(differing)


def resharding_effect(saved: Mapping[str, Any], ours: Mapping[str, Any], learning_rate: float) -> str:
    """A warning for the user: what another number of ranks or another batch means for the resumed run."""
    before, now = (math.prod(identity[key] for key in _RESHARDED) for identity in (saved, ours))
    if before == now:
        return (
            f"resumed on {ours['world_size']} ranks instead of {saved['world_size']}: the samples stay the same, but "
            f"gradients are summed in another order, so the run equals the uninterrupted one only up to rounding"
        )
    return (
        f"resumed with a global batch of {now} instead of {before}: from here on the steps differ from those of the "
        f"uninterrupted run; the learning rate stays {learning_rate}"
    )
