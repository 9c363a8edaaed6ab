"""Checkpoints: learned parameters, AdamW's moments, the learning-rate schedule, the step.

There is no random state to save: :class:`sdtune.data.samples.Sampler` computes every sample from its number.

``step-<n>/state.safetensors`` holds ``<name>``, ``<name>.exp_avg`` and ``<name>.exp_avg_sq`` for each learned
parameter; ``step-<n>/checkpoint.json`` holds everything else, and the hash of the first file.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from sdtune.errors import BadInput
from sdtune.training.identity import check_same_run, resharding_effect

FORMAT = 2
"""Number of the format in ``checkpoint.json``. The first format had no number, and knew one parameter only."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Training samples used by all ranks; the next step takes the numbers from here on."""
    best: float | None = None
    """Lowest validation loss that counted as an improvement, or None before the first validation."""
    stale: int = 0
    """Validations since the last improvement."""
    losses: list[float] = field(default_factory=list)
    """All validation losses; kept for the early stopping that needs them."""
    start: str | None = None
    """The starting point that was chosen, or None where there was nothing to choose."""
    shares: list[float] | None = None
    """The measured share of the samples that each interval of the timesteps gets; None: nothing was measured."""

    def validated(self, loss: float, min_delta: float) -> None:
        """Record a validation. ``loss`` is an improvement if it is below the best by the fraction ``min_delta``."""
        if self.best is None or loss < self.best * (1 - min_delta):
            self.best, self.stale = loss, 0
        else:
            self.stale += 1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    identity: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write ``folder/step-<progress.step>`` completely or not at all, then remove all but the newest ``keep``.

    Args:
        folder: ``checkpoints/`` of the run.
        progress: how far the run is.
        parameters: all learned parameters, by name.
        optimizer: AdamW over ``parameters``.
        schedule: the learning-rate schedule.
        identity: see :func:`sdtune.training.identity.run_identity`.
        keep: number of checkpoints to keep.
    """
    states = {name: optimizer.state[p] for name, p in parameters.items() if p in optimizer.state}
    moments = {f"{name}.{key}": state[key] for name, state in states.items() for key in _MOMENTS}
    data = save({**{name: p.detach().contiguous() for name, p in parameters.items()}, **moments})
    facts = {
        "format": FORMAT,
        "progress": asdict(progress),
        "optimizer_steps": {name: int(state["step"]) for name, state in states.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
        "schedule": schedule.state_dict(),
        "identity": dict(identity),
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
    _sync_folder(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """The content of one checkpoint; None if it is missing or incomplete.

    Raises:
        BadInput: it is complete, but in another format.
    """
    try:
        facts = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        data = (path / "state.safetensors").read_bytes()
    except (OSError, ValueError):
        return None
    if hashlib.sha256(data).hexdigest() != facts.get("sha256"):
        return None
    if (saved := facts.get("format", 1)) != FORMAT:
        raise BadInput(
            f"checkpoint {path} has format {saved}, but this version of sdtune reads format {FORMAT}; resume it with "
            f"the version that wrote it, or start again with --overwrite (Ansible: -e training_overwrite=true)"
        )
    return facts, load(data)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read, and that belongs to the resumed run."""

    facts: dict[str, Any]
    """Content of ``checkpoint.json``."""
    tensors: dict[str, torch.Tensor]
    """Content of ``state.safetensors``."""
    resharding: str
    """A warning from :func:`sdtune.training.identity.resharding_effect`; empty where nothing is different."""


def find_checkpoint(
    folder: Path, which: str, identity: Mapping[str, Any], *, reshard: bool = False
) -> Checkpoint | None:
    """Read the checkpoint that a run resumes from; None for a new start.

    Only rank 0 may call this, because the other ranks may not have its disk; they receive the result from it.

    Args:
        folder: ``checkpoints/`` of the run.
        which: the name of one; ``latest``, the newest complete one; or ``auto``, the same, but a new start if there is
            none. An incomplete one is skipped with a warning, unless it is named.
        identity: of the run that resumes, see :func:`sdtune.training.identity.run_identity`.
        reshard: allow another number of ranks, batch size and gradient accumulation.

    Raises:
        BadInput: there is none, it is in another format, or it belongs to another run.
    """
    newest = which in ("auto", "latest")
    candidates = sorted(folder.glob("step-*"), reverse=True) if newest else [folder / Path(which).name]
    for path in candidates:
        content = _read(path)
        if content is None:
            if not newest:
                raise BadInput(
                    f"training.resume_from_checkpoint: {path} is missing or incomplete; take latest, or another"
                )
            warnings.warn(f"checkpoint {path} is incomplete; skipped", stacklevel=2)
            continue
        facts, tensors = content
        saved = facts["identity"]
        differs = check_same_run(path, saved, identity, reshard=reshard)
        rate = facts["schedule"]["_last_lr"][0]
        return Checkpoint(facts, tensors, resharding_effect(saved, identity, rate) if differs else "")
    if which == "auto":
        return None
    raise BadInput(
        f"training.resume_from_checkpoint: {folder} holds no complete checkpoint; auto would start a new run instead"
    )


def restore(
    checkpoint: Checkpoint,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> Progress:
    """Restore parameters, optimizer and schedule in place.

    Args:
        checkpoint: from :func:`find_checkpoint`.
        parameters: all learned parameters, by name.
        optimizer: AdamW over ``parameters``.
        schedule: the learning-rate schedule.

    Returns:
        How far the run is.
    """
    facts, tensors = checkpoint.facts, checkpoint.tensors
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors[name])
        if name in facts["optimizer_steps"]:  # a parameter that had no gradient yet has no state
            optimizer.state[parameter] = {
                "step": torch.tensor(float(facts["optimizer_steps"][name])),
                **{key: tensors[f"{name}.{key}"] for key in _MOMENTS},
            }
    schedule.load_state_dict(facts["schedule"])
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    return Progress(**facts["progress"])
