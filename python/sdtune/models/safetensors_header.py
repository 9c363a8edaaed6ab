"""The header of a safetensors file: names, types and shapes of its tensors, read without loading one.

Standard library only, for the control node has neither torch nor safetensors.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput, shown

_LARGEST_HEADER = 16_000_000
"""Bytes; the header of a model of a thousand tensors has a tenth of a megabyte."""
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class TensorFacts:
    """A tensor, as the header describes it."""

    dtype: str
    """Type, such as ``F32``."""
    shape: tuple[int, ...]
    """Shape."""

    @property
    def parameters(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


def _wrong_start(start: bytes) -> str:
    """What a file is that begins like this, where it is known not to be a safetensors file; else empty."""
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in place of the weights; type git lfs pull in its folder"
    if start.lstrip()[:1] == b"<":
        return "is a page (HTML or XML) in place of the weights; download it again"
    if start.startswith((b"PK\3\4", b"\x80\2")):
        return "is a checkpoint in PyTorch's pickle format under a wrong name"
    return ""


def _numbers(value: Any) -> tuple[int, ...] | None:
    """A list of numbers that are not negative; None if it is anything else."""
    right = isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
    return tuple(value) if right else None


def _tensor(name: str, entry: Any, room: int) -> TensorFacts:
    """One entry of the header.

    Raises:
        ValueError: it is not as the format demands.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{shown(name)} is no object")  # noqa: TRY004 - as json does
    dtype, shape, offsets = entry.get("dtype"), _numbers(entry.get("shape")), _numbers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{shown(name)} has the type {shown(dtype)}")
    if shape is None or offsets is None:
        raise ValueError(f"{shown(name)} has no shape or place")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
        raise ValueError(f"{shown(name)} lies outside of the file, which is cut off")
    if len(shape) > 16 or (offsets[1] - offsets[0]) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"{shown(name)} has a size that its shape contradicts")
    return TensorFacts(dtype, shape)


def read_header(path: Path) -> dict[str, TensorFacts]:
    """The tensors of a safetensors file, by name.

    Raises:
        BadInput: it cannot be read, is another kind of file, is cut off or damaged; the message names it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            if what := _wrong_start(start):
                raise BadInput(f"{path} {what}")
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise BadInput(f"{path} is no safetensors file, or is cut off ({size} bytes); fetch it again")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})") from None
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")  # noqa: TRY004, TRY301 - as json does
        room = size - 8 - length
        return {name: _tensor(name, entry, room) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is a damaged safetensors file ({error}); fetch it again") from None
