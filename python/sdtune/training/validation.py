"""A loss that can be compared: over fixed (picture, timestep, noise) triples.

The loss of a training step says little, since the timestep that was drawn dominates it. The triples here depend on
nothing but their number, so that the figure compares between steps, seeds and runs over the same pictures and model.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from sdtune.data.latents import LatentCache
from sdtune.models.sd import Frozen, denoising_losses


@dataclass(frozen=True)
class Triples:
    """n triples: latents and noise float32 [n, c, h, w], timesteps int64 [n]."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


def make_triples(cache: LatentCache, count: int, timesteps: int) -> Triples:
    """``count`` triples: the pictures in turn, timesteps spread evenly over the schedule, noise of a fixed seed.

    Every rank calls this, since pictures that are not in the cache yet are encoded.
    """
    cache.need((k, False) for k in range(min(count, cache.count)))
    rng = np.random.Generator(np.random.Philox(key=[0, 3]))
    noise = torch.from_numpy(rng.standard_normal((count, *cache.shape), dtype=np.float32))
    latents = torch.stack([cache.mean(k % cache.count) for k in range(count)])
    spread = ((torch.arange(count) + 0.5) / count * timesteps).long()
    return Triples(latents, noise, spread)


@torch.no_grad()
def validate(frozen: Frozen, triples: Triples, ids: torch.Tensor, batch: int, accelerator: Accelerator) -> float:
    """Mean loss over all triples with the caption ``ids`` [1, tokens]; ranks share the work and get the same figure."""
    share = torch.arange(len(triples.timesteps))[accelerator.process_index :: accelerator.num_processes]
    total = torch.zeros(2, dtype=torch.float64)
    for part in torch.split(share, batch) if len(share) else ():
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


class Validator:
    """Measures the word that is being learned, against the word it started from and the best caption of its user.

    Attributes:
        baseline: loss of the initializer, before any step.
        reference: loss of the reference caption, or None.
        latest: loss of the word when it was last measured, or None.
    """

    def __init__(self, frozen: Frozen, triples: Triples, template: str, batch: int, accelerator: Accelerator) -> None:
        """``template`` is the one sentence, with ``{}``, that every measurement uses; ``batch`` samples at a time."""
        self._frozen, self._triples, self._template = frozen, triples, template
        self._batch, self._accelerator = batch, accelerator
        self.baseline = math.nan
        self.reference: float | None = None
        self.latest: float | None = None

    def loss_of(self, noun: str) -> float:
        """Mean loss with ``noun`` in the sentence; the same on every rank."""
        ids = self._frozen.token_ids([self._template.format(noun)])
        return validate(self._frozen, self._triples, ids, self._batch, self._accelerator)

    def measure(self, word: str) -> float:
        """Measure the word as it is now."""
        self.latest = self.loss_of(word)
        return self.latest

    @property
    def gap_closed(self) -> float | None:
        """Share of the gap between initializer and reference caption that the word has closed; 1 is all of it."""
        return None if self.latest is None else share_of_gap(self.baseline, self.reference, self.latest)

    def start(self, word: str, start: torch.Tensor, caption: str | None) -> None:
        """Measure the reference caption, and the word with its starting rows, whatever it has learned since."""
        if caption is not None:
            self.reference = self.loss_of(caption)
        rows = self._frozen.embedding.rows
        with torch.no_grad():
            now = rows.clone()
            rows.copy_(start)
            self.baseline = self.loss_of(word)
            rows.copy_(now)
