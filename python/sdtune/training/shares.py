"""Which timesteps are worth more samples: where the gradient of what is learned is large."""

from collections.abc import Callable, Collection

import torch
from accelerate import Accelerator
from torch import nn

from sdtune.data.timesteps import measured_shares
from sdtune.models.family import Networks
from sdtune.training.validation import Triples, triples_batch

INTERVALS = 8
"""Equal intervals of the noise schedule that are told apart."""
PER_INTERVAL = 4
"""Triples of each."""


def measure_shares(
    networks: Networks,
    parameters: Collection[nn.Parameter],
    triples: Triples,
    caption: Callable[[int], str],
    snr_gamma: float | None,
    accelerator: Accelerator,
) -> list[float]:
    """The share of the samples that each interval of the timesteps gets. Ranks divide the triples.

    Args:
        networks: with what is learned.
        parameters: all learned parameters; they keep their values.
        triples: at least one in each of :data:`INTERVALS` intervals.
        caption: the validation caption of a picture.
        snr_gamma: of the training.
        accelerator: of this run.
    """
    squares = torch.zeros(INTERVALS, dtype=torch.float64)
    counts = torch.zeros(INTERVALS, dtype=torch.float64)
    for k in range(accelerator.process_index, len(triples.pictures), accelerator.num_processes):
        batch = triples_batch(triples, [k], [caption(triples.pictures[k])])
        networks.denoising_losses(batch, snr_gamma).sum().backward()  # type: ignore[no-untyped-call]
        interval = min(int(triples.timesteps[k]) * INTERVALS // networks.num_timesteps, INTERVALS - 1)
        squares[interval] += sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None)
        counts[interval] += 1
        for parameter in parameters:
            parameter.grad = None
    summed = accelerator.reduce(torch.stack([squares, counts]), "sum")
    return measured_shares((summed[0] / summed[1].clamp(min=1)).sqrt().tolist())
