"""Checkpoints of a few kilobytes: learned rows, AdamW's moments, the schedule, the step.

No random state is kept because none exists: :class:`sdtune.data.Sampler` computes every draw from the sample's number.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from sdtune.data.pictures import list_pictures
from sdtune.errors import BadInput
from sdtune.settings import Job

# what may differ between a run and its resumption without changing what is learned
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
# what resume_reshard allows to differ: how a global batch is cut into ranks, micro-steps and batches
_RESHARDED = ("world_size", "train_batch_size", "gradient_accumulation_steps")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        samples: training samples drawn by all ranks; the next step takes the numbers from here on.
        best: lowest validation loss that counted as an improvement, or None before the first.
        stale: validations since then.
    """

    step: int = 0
    samples: int = 0
    best: float | None = None
    stale: int = 0

    def validated(self, loss: float, min_delta: float) -> None:
        """Take note of a validation; ``loss`` has to be ``min_delta`` below the best, relative to it, to count."""
        if self.best is None or loss < self.best * (1 - min_delta):
            self.best, self.stale = loss, 0
        else:
            self.stale += 1


def model_fingerprint(model: Path) -> str:
    """A hash of the size and of 64 KiB at 64 places of each weight file: tells models apart in milliseconds."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("text_encoder", "unet", "vae") for p in (model / part).glob("*.safetensors")):
        size, piece, places = path.stat().st_size, 65_536, 64
        digest.update(f"{path.relative_to(model)} {size}".encode())
        with path.open("rb") as f:
            for place in range(places):
                f.seek(max(0, size - piece) * place // (places - 1))
                digest.update(f.read(piece))
    return digest.hexdigest()[:16]


def pictures_fingerprint(folder: str | Path) -> str:
    """A hash of every picture's name and content."""
    digest = hashlib.sha256()
    for path in list_pictures(folder):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def identity(job: Job, world_size: int) -> dict[str, Any]:
    """What has to be the same for a run to be the same run."""
    free = set(_MAY_CHANGE)
    if job.training.lr_scheduler in ("constant", "constant_with_warmup"):
        free.add("max_train_steps")  # the other schedules are stretched over the steps
    settings = {**asdict(job.data), **asdict(job.training), "world_size": world_size}
    return {
        "model": model_fingerprint(Path(job.model.path)),
        "pictures": pictures_fingerprint(job.data.path),
        "seed": job.seed,
        "software_stack": job.software_stack,
        **{key: value for key, value in settings.items() if key not in free},
    }


def save_checkpoint(
    folder: Path,
    progress: Progress,
    rows: torch.nn.Parameter,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    who: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write ``folder/step-<progress.step>`` whole or not at all, then remove all but the newest ``keep``.

    Args:
        folder: ``checkpoints/`` of the run.
        progress: how far the run is.
        rows: the learned rows, [num_vectors, dim].
        optimizer: AdamW over ``rows`` alone.
        schedule: the learning-rate schedule.
        who: :func:`identity` of the run.
        keep: number of checkpoints to keep.
    """
    state = optimizer.state[rows]
    data = save({"rows": rows.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]})
    facts = {
        "progress": asdict(progress),
        "optimizer_step": int(state["step"]),
        "sha256": hashlib.sha256(data).hexdigest(),
        "schedule": schedule.state_dict(),
        "identity": dict(who),
    }
    target = folder / f"step-{progress.step:06d}"
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in (("state.safetensors", data), ("checkpoint.json", json.dumps(facts, indent=2).encode())):
        with (temporary / name).open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """The content of one checkpoint; None if it is torn."""
    try:
        facts = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        data = (path / "state.safetensors").read_bytes()
    except (OSError, ValueError):
        return None
    return (facts, load(data)) if hashlib.sha256(data).hexdigest() == facts.get("sha256") else None


@dataclass(frozen=True)
class Checkpoint:
    """One that was read, and belongs to the run that goes on.

    Attributes:
        facts: what ``checkpoint.json`` says.
        tensors: ``rows``, ``exp_avg`` and ``exp_avg_sq``, each [num_vectors, dim].
        resharded: what :func:`_what_resharding_changes` says of it; empty where nothing differs.
    """

    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    resharded: str


def find_checkpoint(folder: Path, which: str, who: Mapping[str, Any], *, reshard: bool = False) -> Checkpoint | None:
    """Read the checkpoint that a run goes on from; None for a new start.

    Only the first rank has them, so only that one may ask; the others get from it what it found.

    Args:
        folder: ``checkpoints/`` of the run.
        which: the name of one; ``latest``, the newest whole one; or ``auto``, the same, but a new start where none is.
            A torn one is skipped with a warning unless it is named.
        who: :func:`identity` of the run that goes on.
        reshard: allow another number of ranks and another cut of the global batch.

    Raises:
        BadInput: there is none, or it belongs to another run; the message names what differs.
    """
    newest = which in ("auto", "latest")
    candidates = sorted(folder.glob("step-*"), reverse=True) if newest else [folder / Path(which).name]
    for path in candidates:
        content = _read(path)
        if content is None:
            if not newest:
                raise BadInput(f"training.resume_from_checkpoint: {path} is missing or torn; take latest, or another")
            warnings.warn(f"checkpoint {path} is torn; skipped", stacklevel=2)
            continue
        facts, tensors = content
        differing = {key for key, value in who.items() if facts["identity"].get(key) != value}
        _refuse_another_run(path, facts["identity"], who, differing, reshard)
        rate = facts["schedule"]["_last_lr"][0]
        resharded = _what_resharding_changes(facts["identity"], who, rate) if differing else ""
        return Checkpoint(facts, tensors, resharded)
    if which == "auto":
        return None
    raise BadInput(
        f"training.resume_from_checkpoint: {folder} holds no whole checkpoint; auto would start anew where none is"
    )


def restore(
    checkpoint: Checkpoint,
    rows: torch.nn.Parameter,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> Progress:
    """Put rows, optimizer and schedule back in place and return how far the run is.

    Args:
        checkpoint: of :func:`find_checkpoint`.
        rows: the learned rows, [num_vectors, dim].
        optimizer: AdamW over ``rows`` alone.
        schedule: the learning-rate schedule.
    """
    facts, tensors = checkpoint.facts, checkpoint.tensors
    with torch.no_grad():
        rows.copy_(tensors["rows"])
    optimizer.state[rows] = {
        "step": torch.tensor(float(facts["optimizer_step"])),
        "exp_avg": tensors["exp_avg"],
        "exp_avg_sq": tensors["exp_avg_sq"],
    }
    schedule.load_state_dict(facts["schedule"])
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    return Progress(**facts["progress"])


def _refuse_another_run(
    path: Path, its: Mapping[str, Any], ours: Mapping[str, Any], differing: set[str], reshard: bool
) -> None:
    for key in ours:
        if key not in differing or (reshard and key in _RESHARDED):
            continue
        remedy = "put it back, or start without resume_from_checkpoint"
        if key in _RESHARDED:
            remedy = "put it back, or allow it with resume_reshard: true"
        raise BadInput(
            f"checkpoint {path} is of another run: its {key} is {its.get(key)!r}, this job's is {ours[key]!r}; {remedy}"
        )


def _what_resharding_changes(its: Mapping[str, Any], ours: Mapping[str, Any], rate: object) -> str:
    before, now = (math.prod(who[key] for key in _RESHARDED) for who in (its, ours))
    if before == now:
        return (
            f"resumed on {ours['world_size']} ranks instead of {its['world_size']}: the samples stay the same, but "
            f"gradients are summed in another order, so the run equals the uninterrupted one only up to rounding"
        )
    return (
        f"resumed with a global batch of {now} instead of {before}: from here on this is another run, of other steps; "
        f"the learning rate stays {rate}"
    )
