"""A validation loss that is comparable: over fixed (picture, timestep, noise) triples.

The loss of a training step depends mostly on its random timestep. The triples depend on nothing but their number, so
the validation loss is comparable between steps, seeds and runs with the same pictures and model.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from sdtune.data.latents import LatentCache
from sdtune.data.pictures import View
from sdtune.methods.method import Method
from sdtune.models.family import Batch, Networks


@dataclass(frozen=True)
class Triples:
    """n triples."""

    latents: Sequence[torch.Tensor]
    """float32 [c, h, w] each."""
    noise: Sequence[torch.Tensor]
    """float32 [c, h, w] each."""
    timesteps: torch.Tensor
    """int64 [n]."""
    pictures: Sequence[int]
    """Number of each triple's picture."""
    views: Sequence[View]
    """How each triple's picture was cropped and resized."""


def make_triples(cache: LatentCache, count: int, timesteps: int, num_pictures: int | None = None) -> Triples:
    """Make ``count`` triples: the pictures in turn, timesteps evenly spaced over the schedule, noise of a fixed seed.

    Every rank calls this, because missing pictures are encoded. Only the first ``num_pictures`` are used, unless that
    is None.
    """
    num_pictures = cache.count if num_pictures is None else num_pictures
    cache.encode((k, False) for k in range(min(count, num_pictures)))
    rng = np.random.Generator(np.random.Philox(key=[0, 3]))
    pictures = [k % num_pictures for k in range(count)]
    noise = [torch.from_numpy(rng.standard_normal(cache.shape_of(k), dtype=np.float32)) for k in pictures]
    latents = [cache.mean(picture) for picture in pictures]
    spaced = ((torch.arange(count) + 0.5) / count * timesteps).long()
    return Triples(latents, noise, spaced, pictures, [cache.view_of(picture) for picture in pictures])


def triples_batch(triples: Triples, part: list[int], captions: Sequence[str]) -> Batch:
    """The batch of the triples of these numbers, whose latents have one shape, each with its caption."""
    return Batch(
        latents=torch.stack([triples.latents[k] for k in part]),
        noise=torch.stack([triples.noise[k] for k in part]),
        timesteps=triples.timesteps[part],
        captions=captions,
        views=[triples.views[k] for k in part],
    )


@torch.no_grad()
def validate(
    networks: Networks, triples: Triples, caption: Callable[[int], str], batch_size: int, accelerator: Accelerator
) -> float:
    """Mean loss over all triples. Ranks divide the triples and return the same value.

    Args:
        networks: what is measured.
        triples: what it is measured on.
        caption: the caption of a picture, by its number.
        batch_size: samples at a time.
        accelerator: of this run.
    """
    share = range(accelerator.process_index, len(triples.pictures), accelerator.num_processes)
    total = torch.zeros(2, dtype=torch.float64)
    for part in _batches(share, triples, batch_size):
        captions = [caption(triples.pictures[k]) for k in part]
        losses = networks.denoising_losses(triples_batch(triples, part, captions))
        total += torch.tensor([losses.double().sum(), len(part)], dtype=torch.float64)
    total = accelerator.reduce(total, "sum")
    return float(total[0] / total[1])


def _batches(share: Iterable[int], triples: Triples, batch_size: int) -> Iterator[list[int]]:
    """Triples in batches whose latents have one shape."""
    by_shape: dict[torch.Size, list[int]] = {}
    for k in share:
        by_shape.setdefault(triples.latents[k].shape, []).append(k)
    for same in by_shape.values():
        yield from (same[first : first + batch_size] for first in range(0, len(same), batch_size))


def share_of_gap(baseline: float, reference: float | None, now: float) -> float | None:
    """How much of the gap between the initial loss and the reference caption's is closed; None if there is no gap."""
    if reference is None or baseline <= reference:
        return None
    return (baseline - now) / (baseline - reference)


class Validator:
    """Measures the learned concept, and compares it with its initial state and with the user's reference caption.

    Attributes:
        baseline: loss with the initial parameters, before any step.
        reference: loss of the reference caption, or None.
        latest: loss at the last measurement, or None.
    """

    def __init__(
        self, networks: Networks, method: Method, triples: Triples, batch_size: int, accelerator: Accelerator
    ) -> None:
        """Every measurement takes ``batch_size`` samples at a time."""
        self._networks, self._method, self._triples = networks, method, triples
        self._batch_size, self._accelerator = batch_size, accelerator
        self.baseline = math.nan
        self.reference: float | None = None
        self.latest: float | None = None

    def _loss_of(self, caption: Callable[[int], str]) -> float:
        return validate(self._networks, self._triples, caption, self._batch_size, self._accelerator)

    def measure(self) -> float:
        """Measure the parameters as they are now. Every rank calls this and gets the same value."""
        self.latest = self._loss_of(self._method.validation_caption)
        return self.latest

    @property
    def gap_closed(self) -> float | None:
        """Share of the gap between initial loss and reference caption that is closed; 1 is all of it."""
        return None if self.latest is None else share_of_gap(self.baseline, self.reference, self.latest)

    def measure_baseline(
        self, parameters: Mapping[str, nn.Parameter], initial: Mapping[str, torch.Tensor], description: str | None
    ) -> None:
        """Measure the reference caption and the validation captions, both with the initial parameters.

        Args:
            parameters: all learned parameters; they keep their values.
            initial: their values before the first step of the run.
            description: the user's reference caption, or None.
        """
        current = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(initial[name])
            if description is not None:
                caption = self._method.reference_caption(description)
                self.reference = self._loss_of(lambda _: caption)
            self.baseline = self._loss_of(self._method.validation_caption)
            for name, parameter in parameters.items():
                parameter.copy_(current[name])
