"""Checks that losses, gradients and what is learned are finite; going on with others would destroy the result."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from sdtune.data.samples import Sample
from sdtune.errors import TrainingFailed
from sdtune.methods.method import Learned


def check_losses(losses: torch.Tensor, samples: Sequence[Sample], pictures: Sequence[Path], where: str) -> None:
    """Check the losses of a batch.

    Args:
        losses: [len(samples)].
        samples: of the batch.
        pictures: files of all pictures.
        where: step and rank, for the message.

    Raises:
        TrainingFailed: names the first sample whose loss is not finite.
    """
    for value, sample in zip(losses.tolist(), samples, strict=True):
        if not math.isfinite(value):
            raise TrainingFailed(
                f"the loss is {value} at {where}, picture {pictures[sample.picture].name}, timestep {sample.timestep}; "
                f'the last checkpoint is untouched; try a lower learning_rate or mixed_precision "no"'
            )


def check_gradients(parameters: Collection[nn.Parameter], step: int) -> None:
    """Check the gradients after the exchange; they are the same on all ranks.

    Raises:
        TrainingFailed: one is not finite.
    """
    for parameter in parameters:
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise TrainingFailed(f"the gradient is not finite at step {step}; see the other ranks' messages")


def check_learned(learned: Mapping[str, Learned], step: int) -> None:
    """Check what was learned so far; it is the same on all ranks.

    Raises:
        TrainingFailed: a number is not finite, or a norm is so large that training has diverged.
    """
    for name, one in learned.items():
        norm = float(one.parameter.detach().double().norm(dim=-1).max())
        if not math.isfinite(norm) or norm > (one.largest or math.inf):
            wrong = f"has a norm of {norm:.1e}, where {one.largest:.0e} is the most that can be useful"
            raise TrainingFailed(
                f"{name} {wrong if math.isfinite(norm) else 'is not finite'} after step {step}: training has diverged; "
                f"no result is written, and the last checkpoint is untouched; lower learning_rate"
            )
