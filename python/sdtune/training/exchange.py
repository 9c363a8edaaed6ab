"""The one exchange of a training step: gradients, loss and stop flag of all ranks in one flat all-reduce."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """What every rank knows after the exchange."""

    loss: float
    """Mean over all ranks."""
    stop: bool
    """Whether rank 0 was asked to stop."""
    bytes: int
    """Size of the all-reduced tensor; 0 for one rank."""


def exchange(parameters: Collection[nn.Parameter], loss: float, stop: bool, accelerator: Accelerator) -> Exchanged:
    """Replace the gradients of ``parameters`` by their means over all ranks. Every rank calls this.

    The loss and the stop flag are two more numbers in the same tensor: all ranks stop after the same step, and the
    logged loss is that of the global batch, without another exchange.

    Args:
        parameters: in the same order on all ranks, each with a gradient.
        loss: this rank's mean loss.
        stop: whether this rank was asked to stop.
        accelerator: of this run.
    """
    if accelerator.num_processes == 1:
        return Exchanged(loss=loss, stop=stop, bytes=0)
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    if len(gradients) < len(parameters):  # offsets would shift
        raise RuntimeError("a learned parameter got no gradient on this rank")
    flat = torch.cat([*gradients, torch.tensor([loss, float(stop)])])
    mean = accelerator.reduce(flat, "mean")
    offset = 0
    for parameter in parameters:
        parameter.grad = mean[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    mean_loss, stops = mean[offset:].tolist()
    return Exchanged(loss=mean_loss, stop=stops > 0, bytes=flat.nbytes)
