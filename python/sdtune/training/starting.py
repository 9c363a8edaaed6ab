"""Where learning starts, where a method leaves that open: at the point with the lowest loss of a short search.

The gradient of the validation loss says which points are worth a look. Those are compared on a few triples, the better
half of them on more, and so on. All of it depends on nothing random, and every rank comes to the same result.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from torch import nn

from sdtune.methods.method import StartingPoints
from sdtune.models.family import Networks
from sdtune.training.validation import Triples, triples_batch

_COMPARED = 16
"""Points that are compared by their losses."""
_FIRST = 2
"""Triples of the first comparison; each further one has twice as many."""
_LAST = 16
"""Triples of the last comparison, and of the gradient."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The result of a search."""

    point: str
    """The chosen point."""
    losses: dict[str, float]
    """Loss of each point that was compared, on as many triples as it was compared on."""
    samples: int
    """Samples that were computed in the whole cluster; a training sample counts as two."""


def spread_out(count: int, length: int) -> list[int]:
    """At most ``count`` of the numbers 0 to ``length - 1``, of which the first few are far apart too."""
    chosen = sorted({k * length // min(count, length) for k in range(min(count, length))})
    bits = max(1, (len(chosen) - 1).bit_length())
    order = sorted(range(len(chosen)), key=lambda k: int(f"{k:0{bits}b}"[::-1], 2))
    return [chosen[k] for k in order]


class Search:
    """One search, which all ranks make together."""

    def __init__(
        self,
        points: StartingPoints,
        caption: Callable[[int], str],
        networks: Networks,
        triples: Triples,
        batch_size: int,
        accelerator: Accelerator,
    ) -> None:
        """Nothing is computed yet.

        Args:
            points: to choose from.
            caption: the validation caption of a picture.
            networks: with what a method has added.
            triples: to choose by.
            batch_size: samples at a time.
            accelerator: of this run.
        """
        self._points, self._caption, self._networks, self._triples = points, caption, networks, triples
        self._batch_size, self._accelerator = batch_size, accelerator
        self._order = spread_out(_LAST, len(triples.pictures))
        self._samples = 0

    def _share(self, units: Sequence[int]) -> list[int]:
        return list(units[self._accelerator.process_index :: self._accelerator.num_processes])

    def gradient(self, parameters: Collection[nn.Parameter]) -> None:
        """Set the gradients of ``parameters`` to those of the loss on all triples of the search."""
        self._samples += 2 * len(self._order)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for k in self._share(self._order):
            captions = [self._caption(self._triples.pictures[k])]
            self._networks.denoising_losses(triples_batch(self._triples, [k], captions)).sum().backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self._accelerator.reduce(parameter.grad, "sum")

    @torch.no_grad()
    def losses(self, points: Sequence[str], triples: Sequence[int]) -> torch.Tensor:
        """float64 [points]: sum of the loss of each point over ``triples``."""
        self._samples += len(points) * len(triples)
        pairs = [(p, k) for k in triples for p in range(len(points))]
        summed = torch.zeros(len(points), dtype=torch.float64)
        mine = iter(self._share(range(len(pairs))))
        while chunk := list(islice(mine, self._batch_size)):
            for same in self._of_one_shape([pairs[unit] for unit in chunk]):
                captions = [self._points.caption(self._caption(self._triples.pictures[k]), points[p]) for p, k in same]
                found = self._networks.denoising_losses(triples_batch(self._triples, [k for _, k in same], captions))
                for (p, _), loss in zip(same, found.tolist(), strict=True):
                    summed[p] += loss
        total: torch.Tensor = self._accelerator.reduce(summed, "sum")
        return total

    def _of_one_shape(self, pairs: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        shapes: dict[torch.Size, list[tuple[int, int]]] = {}
        for pair in pairs:
            shapes.setdefault(self._triples.latents[pair[1]].shape, []).append(pair)
        return list(shapes.values())

    def run(self, parameters: Collection[nn.Parameter]) -> Start:
        """Search. The learned ``parameters`` keep their values."""
        if len(self._points.points) > _COMPARED:
            self.gradient(parameters)
        left = self._points.promising(_COMPARED)
        for parameter in parameters:
            parameter.grad = None
        sums, seen = dict.fromkeys(left, 0.0), 0
        losses: dict[str, float] = {}
        while seen < len(self._order) and (len(left) > 1 or not losses):
            more = self._order[seen : max(_FIRST, 2 * seen)]
            seen += len(more)
            for point, loss in zip(left, self.losses(left, more).tolist(), strict=True):
                sums[point] += loss
                losses[point] = sums[point] / seen
            left = sorted(left, key=losses.__getitem__)[: (len(left) + 1) // 2]
        return Start(point=min(left, key=losses.__getitem__), losses=losses, samples=self._samples)
