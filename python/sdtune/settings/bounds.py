"""Bounds of a value, declared beside its type: ``steps: Annotated[int, Ge(1)]``.

A bound has two texts: ``str(bound)`` for the reference page, and ``complaint(value)`` for an error message.
"""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sdtune.errors import shown

NAME_BYTES = 255
"""Longest name of a file that Linux allows."""
PATH_BYTES = 4096 - 512
"""Longest path of a folder; Linux allows 4,096 bytes, and the rest is for the files in it."""


def _number(value: float) -> str:
    """A limit as text; the largest one as a power, which is easier to read."""
    return "2^63-1" if value == 2**63 - 1 else str(value)


@dataclass(frozen=True)
class Bound:
    """A rule for one value, independent of the others."""

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is within the bound."""
        raise NotImplementedError

    def complaint(self, value: Any) -> str:
        """What is wrong with ``value``; a message puts it after the name of the setting."""
        return f"{value!r} is not {self}"


@dataclass(frozen=True)
class Ge(Bound):
    """Greater than or equal to ``limit``."""

    limit: float

    def __str__(self) -> str:
        return f"at least {self.limit}"

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is at least the limit; a NaN never is."""
        return bool(value >= self.limit)

    def complaint(self, value: Any) -> str:
        """Say that the value is negative, or less than the limit."""
        return f"{value} is negative" if self.limit == 0 else f"{value} is less than {self.limit}"


@dataclass(frozen=True)
class Gt(Bound):
    """Greater than ``limit``."""

    limit: float

    def __str__(self) -> str:
        return f"above {self.limit}"

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is above the limit; a NaN never is."""
        return bool(value > self.limit)

    def complaint(self, value: Any) -> str:
        """Say that the value has to be above the limit."""
        return f"{value} has to be {self}"


@dataclass(frozen=True)
class Le(Bound):
    """Less than or equal to ``limit``: above what anybody has a use for, so that a slip of the finger is no work."""

    limit: float

    def __str__(self) -> str:
        return f"at most {self.limit:,}"

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is at most the limit; a NaN never is."""
        return bool(value <= self.limit)

    def complaint(self, value: Any) -> str:
        """Say that the value is more than the limit."""
        return f"{value} is more than {self.limit:,}"


@dataclass(frozen=True)
class Between(Bound):
    """The closed interval from ``low`` to ``high``; with ``below``, ``high`` itself is excluded."""

    low: float
    high: float
    below: bool = False

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        return f"at least {low} and below {high}" if self.below else f"between {low} and {high}"

    def allows(self, value: Any) -> bool:
        """Whether ``value`` lies in the interval; a NaN never does."""
        return bool(self.low <= value < self.high if self.below else self.low <= value <= self.high)

    def complaint(self, value: Any) -> str:
        """Say that the value is outside of the interval."""
        return f"{value} is not {self}"


@dataclass(frozen=True)
class Multiple(Bound):
    """A positive multiple of ``of``."""

    of: int

    def __str__(self) -> str:
        return f"a multiple of {self.of}"

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is positive and divisible by ``of``."""
        return bool(value > 0 and value % self.of == 0)

    def complaint(self, value: Any) -> str:
        """Say that the value is no such multiple, or not positive."""
        return f"{value} is not {self}" if value > 0 else f"{value} is not above 0"


@dataclass(frozen=True)
class Pattern(Bound):
    """Text that matches ``expression`` as a whole; ``rule`` says the same in words, after "has to"."""

    expression: str
    rule: str

    def __str__(self) -> str:
        return f"has to {self.rule}"

    def allows(self, value: Any) -> bool:
        """Whether the whole of ``value`` matches."""
        return re.fullmatch(self.expression, value) is not None

    def complaint(self, value: Any) -> str:
        """Quote the value and say the rule."""
        return f"{value!r} {self}"


@dataclass(frozen=True)
class Each(Bound):
    """A rule for each item of a list."""

    bound: Bound

    def __str__(self) -> str:
        return f"each {self.bound}"

    def allows(self, value: Any) -> bool:
        """Whether the bound allows every item."""
        return all(self.bound.allows(item) for item in value)

    def complaint(self, value: Any) -> str:
        """What is wrong with the first item that is not allowed."""
        return self.bound.complaint(next(item for item in value if not self.bound.allows(item)))


@dataclass(frozen=True)
class PathText(Bound):
    """A path that a file system can have, on one line."""

    def __str__(self) -> str:
        return "a path"

    def allows(self, value: Any) -> bool:
        """Whether the path is not empty, on one line, and no part of it is longer than a name may be."""
        fits = len(value.encode()) <= PATH_BYTES and self._too_long(value) is None
        return bool(value.strip()) and value.isprintable() and fits

    @staticmethod
    def _too_long(value: str) -> str | None:
        return next((part for part in PurePath(value).parts if len(part.encode()) > NAME_BYTES), None)

    def complaint(self, value: Any) -> str:
        """Say which rule the path breaks."""
        if not value.strip():
            return "is empty; name a path"
        if not value.isprintable():
            return f"{shown(value)} holds a line break or another control character"
        if len(value.encode()) > PATH_BYTES:
            return f"{value[:20]}... is {len(value.encode())} bytes long, and a path here has at most {PATH_BYTES}"
        part = self._too_long(value) or ""
        return f"{part[:20]}... is {len(part.encode())} bytes long, and the name of a file has at most {NAME_BYTES}"


STEPS = Le(10_000_000)
"""Of optimizer steps."""
SIDE = Le(8192)
"""Of pixels along a side; a picture of this size takes hundreds of gigabytes."""
GUIDANCE = Between(0, 1000)
"""Of guidance scales."""
WEIGHT = Between(-1000, 1000)
"""Of the weight of adapters; negative ones turn away from what was learned."""
