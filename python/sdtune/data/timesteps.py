"""How samples get their timesteps, and the weights of their losses that keep the expected loss of uniform timesteps."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

TimestepSampling = Literal["uniform", "spread", "measured"]
_GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of the golden ratio, without their whole part, are spread out evenly however many there are."""
_UNIFORM_SHARE = 0.25
"""Of measured timesteps, this share is uniform, so that no weight is above 4."""
_GRAIN = 1 / 1024
"""Measured shares are rounded to this, so that rounding errors of a sum over ranks do not move timesteps."""


def spread(offset: float, number: int) -> float:
    """A position in [0, 1) that is far from those of the numbers before it.

    Args:
        offset: of the run, in [0, 1).
        number: of the sample.
    """
    return (offset + number * _GOLDEN) % 1.0


def measured_shares(gradients: Sequence[float]) -> list[float]:
    """The share of the timesteps that each of n equal intervals gets, which sum to 1.

    In proportion to the root mean square of the gradient, the sum of weighted gradients has the lowest variance.

    Args:
        gradients: root mean square of the norm of the loss's gradient, in each of the n intervals.
    """
    total = sum(gradients)
    uniform = 1 / len(gradients)
    if total <= 0:
        return [uniform] * len(gradients)
    shares = [(1 - _UNIFORM_SHARE) * g / total + _UNIFORM_SHARE * uniform for g in gradients]
    grains = [max(1, round(share / _GRAIN)) for share in shares]
    return [grain / sum(grains) for grain in grains]


class Timesteps:
    """Makes a timestep, and the weight of its loss, of a position in [0, 1).

    Attributes:
        count: length of the noise schedule.
        shares: of equal intervals of the schedule; None: all timesteps are equally frequent.
    """

    def __init__(self, count: int, shares: Sequence[float] | None = None) -> None:
        """Take the length and the shares, which sum to 1."""
        self.count, self.shares = count, shares
        self._bounds = [0.0, *accumulate(shares)][:-1] if shares is not None else [0.0]

    def at(self, position: float) -> tuple[int, float]:
        """The timestep at a position in [0, 1), and the weight of its loss.

        Positions that are uniform give timesteps with the frequencies of :attr:`shares`; the expectation of weight
        times loss is the mean loss over all timesteps.
        """
        if self.shares is None:
            return int(position * self.count), 1.0
        interval = bisect_right(self._bounds, position) - 1
        inside = (position - self._bounds[interval]) / self.shares[interval]
        timestep = (interval + min(inside, 1 - 1e-12)) / len(self.shares) * self.count
        return int(timestep), 1 / (self.shares[interval] * len(self.shares))
