"""The optimizer and its learning-rate schedule."""

from collections.abc import Collection

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from sdtune.methods.method import Learned
from sdtune.settings import TrainingArgs


def make_optimizer(learned: Collection[Learned], settings: TrainingArgs, scale: int) -> torch.optim.AdamW:
    """AdamW with one parameter group for each learning rate; ``scale`` multiplies all rates."""
    groups: dict[float, list[nn.Parameter]] = {}
    for one in learned:
        groups.setdefault(one.learning_rate, []).append(one.parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate * scale} for rate, parameters in groups.items()],
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
    )


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainingArgs) -> torch.optim.lr_scheduler.LRScheduler:
    """One of diffusers' learning-rate schedules, counted in optimizer steps."""
    schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )
    return schedule
