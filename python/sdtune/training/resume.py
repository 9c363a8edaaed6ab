"""Resuming a run from the checkpoint that the job asks for."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.settings import Job
from sdtune.training.checkpoint import Progress, find_checkpoint, restore
from sdtune.training.distributed import broadcast_from_rank_0


def resume(
    job: Job,
    identity: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    accelerator: Accelerator,
) -> Progress:
    """Restore parameters, optimizer and schedule in place. Every rank calls this; rank 0 reads the checkpoint.

    Returns:
        How far the run is; nothing is done yet where the job asks for no checkpoint, or ``auto`` finds none.

    Raises:
        BadInput: on every rank, if there is no usable checkpoint, or if it is beyond the job's last step.
    """
    settings, which = job.training, job.training.resume_from_checkpoint
    if which is None:
        return Progress()
    folder = Run(job.run_dir).checkpoints
    found = broadcast_from_rank_0(
        accelerator.process_index, lambda: find_checkpoint(folder, which, identity, reshard=settings.resume_reshard)
    )
    if found is None:
        return Progress()
    progress = restore(found, parameters, optimizer, schedule)
    if found.resharding and accelerator.is_main_process:
        warnings.warn(found.resharding, stacklevel=2)
    if progress.step > settings.max_train_steps:
        raise BadInput(
            f"training.max_train_steps: {settings.max_train_steps} is less than the checkpoint's {progress.step} steps"
        )
    return progress
