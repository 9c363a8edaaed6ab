"""A loss that can be compared: over fixed (picture, timestep, noise) triples.

The loss of a training step says little, since the timestep that was drawn dominates it. The triples here depend on
nothing but their number, so that the figure compares between steps, seeds and runs over the same pictures and model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from sdtune.latents import LatentCache
from sdtune.networks import Frozen, denoising_losses


@dataclass(frozen=True)
class Triples:
    """n triples: latents and noise float32 [n, c, h, w], timesteps int64 [n]."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


def make_triples(cache: LatentCache, count: int, timesteps: int) -> Triples:
    """``count`` triples: the pictures in turn, timesteps spread evenly over the schedule, noise of a fixed seed."""
    rng = np.random.Generator(np.random.Philox(key=[0, 3]))
    noise = torch.from_numpy(rng.standard_normal((count, *cache.shape), dtype=np.float32))
    latents = torch.stack([cache.mean[k % len(cache.mean), 0] * cache.scaling_factor for k in range(count)])
    spread = ((torch.arange(count) + 0.5) / count * timesteps).long()
    return Triples(latents, noise, spread)


@torch.no_grad()
def validate(frozen: Frozen, triples: Triples, ids: torch.Tensor, batch: int, accelerator: Accelerator) -> float:
    """Mean loss over all triples with the caption ``ids`` [1, tokens]; ranks share the work and get the same figure."""
    share = torch.arange(accelerator.process_index, len(triples.timesteps), accelerator.num_processes)
    total = torch.zeros(2, dtype=torch.float64)
    for part in torch.split(share, batch):
        losses = denoising_losses(
            frozen, triples.latents[part], triples.noise[part], triples.timesteps[part], ids.expand(len(part), -1)
        )
        total += torch.tensor([losses.double().sum(), len(part)], dtype=torch.float64)
    total = accelerator.reduce(total, "sum")
    return float(total[0] / total[1])


def share_of_gap(baseline: float, reference: float | None, now: float) -> float | None:
    """How much of the way from the initializer's loss to the reference caption's is done; None without a way."""
    if reference is None or baseline <= reference:
        return None
    return (baseline - now) / (baseline - reference)
