"""``metrics.jsonl``: one JSON object a line, written by rank 0, each line at once.

Kinds of object: ``start`` (what runs where), ``step`` (one an optimizer step), ``validation`` (loss on fixed triples).
"""

import json
import platform
from pathlib import Path
from typing import Any

import torch

from sdtune.runs import write_atomically


class Metrics:
    """Appends to the file; a resumed run first drops the lines after its checkpoint."""

    def __init__(self, path: Path, first_step: int = 0) -> None:
        """Open ``path`` for a run that goes on after ``first_step`` optimizer steps (0: starts anew)."""
        kept = [m for m in read_metrics(path) if m.get("step", 0) <= first_step] if first_step and path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one object."""
        self._file.write(json.dumps({"kind": kind, **fields}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All objects of a file, in order; a last line cut off by a crash is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def describe_host() -> dict[str, Any]:
    """What a reader has to know of the host to understand its speed."""
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads_per_rank": torch.get_num_threads(),
    }
