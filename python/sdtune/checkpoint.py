"""Checkpoints of a few kilobytes: learned rows, AdamW's moments, the schedule, the step.

No random state is kept because none exists: :class:`sdtune.data.Sampler` computes every draw from the sample's number.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from sdtune.config import Job
from sdtune.data import list_pictures
from sdtune.errors import BadInput

# what may differ between a run and its resumption without changing what is learned
_MAY_CHANGE = (
    "path",
    "backend",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "save_as_full_pipeline",
)


def model_fingerprint(model: Path) -> str:
    """A hash of the size and of 64 KiB at three places of each weight file: tells models apart at once."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("text_encoder", "unet", "vae") for p in (model / part).glob("*.safetensors")):
        size, piece = path.stat().st_size, 65_536
        digest.update(f"{path.relative_to(model)} {size}".encode())
        with path.open("rb") as f:
            for offset in (0, size // 2, max(0, size - piece)):
                f.seek(offset)
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
        **{key: value for key, value in settings.items() if key not in free},
    }


def save_checkpoint(
    folder: Path,
    step: int,
    rows: torch.nn.Parameter,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    who: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write ``folder/step-<step>`` whole or not at all, then remove all but the newest ``keep``.

    Args:
        folder: ``checkpoints/`` of the run.
        step: optimizer steps done.
        rows: the learned rows, [num_vectors, dim].
        optimizer: AdamW over ``rows`` alone.
        schedule: the learning-rate schedule.
        who: :func:`identity` of the run.
        keep: number of checkpoints to keep.
    """
    state = optimizer.state[rows]
    data = save({"rows": rows.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]})
    facts = {
        "step": step,
        "optimizer_step": int(state["step"]),
        "sha256": hashlib.sha256(data).hexdigest(),
        "schedule": schedule.state_dict(),
        "identity": dict(who),
    }
    target = folder / f"step-{step:06d}"
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


def load_checkpoint(
    folder: Path,
    which: str,
    rows: torch.nn.Parameter,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    who: Mapping[str, Any],
) -> int:
    """Restore a checkpoint in place and return the optimizer steps done; 0 for ``latest`` where there is none.

    A torn checkpoint is skipped with a warning when ``which`` is ``latest``.

    Raises:
        BadInput: the named checkpoint is missing or torn, or belongs to another run; the message names what differs.
    """
    candidates = sorted(folder.glob("step-*"), reverse=True) if which == "latest" else [folder / Path(which).name]
    for path in candidates:
        content = _read(path)
        if content is None:
            if which != "latest":
                raise BadInput(f"training.resume_from_checkpoint: {path} is missing or torn; take latest, or another")
            warnings.warn(f"checkpoint {path} is torn; skipped", stacklevel=2)
            continue
        facts, tensors = content
        for key, value in who.items():
            if facts["identity"].get(key) != value:
                raise BadInput(
                    f"checkpoint {path} is of another run: its {key} is {facts['identity'].get(key)!r}, "
                    f"this job's is {value!r}; put it back, or start without resume_from_checkpoint"
                )
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
        return int(facts["step"])
    return 0
