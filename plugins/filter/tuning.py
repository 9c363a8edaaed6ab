"""Filters of role tuning: which numbers of ranks are tried, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

POWERS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def tuning_candidates(most: int, wanted: Sequence[int] = ()) -> list[int]:
    """The numbers of ranks to try: those that are wanted, else the powers of two up to ``most``."""
    return list(wanted) or [ranks for ranks in POWERS if ranks <= int(most)]


def images_per_second(lines: Iterable[str], images_per_rank: int) -> float:
    """Training images per second over all steps but the first, which also converts weights and encodes the pictures.

    Args:
        lines: the ``step`` lines of metrics.jsonl.
        images_per_rank: images of one rank in a step.
    """
    steps = [json.loads(line) for line in lines][1:]
    images = sum(step["world_size"] * images_per_rank for step in steps)
    return round(images / sum(step["step_s"] for step in steps), 3)


def tuning_table(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each candidate. ``results``: ``ranks``, ``threads``, ``images_per_s``, ``memory_mb`` of each."""
    rows = [
        f"{result['ranks']:5} x {result['threads']:<7}   {result['images_per_s']:10.3f}   {result['memory_mb']:9}"
        for result in results
    ]
    return ["ranks x threads     images/s   memory MB", *rows]


class FilterModule:
    """Make the functions filters."""

    def filters(self) -> dict[str, Any]:
        """``{name: function}``."""
        return {function.__name__: function for function in (tuning_candidates, images_per_second, tuning_table)}
