"""``metrics.jsonl``: one JSON object per line, written by rank 0, unbuffered; and the same figures in a tracker.

Kinds of object: ``start`` and ``resume`` (what runs where), ``starting_point`` (where learning starts, where that was
chosen, see :class:`sdtune.training.starting.Start`), ``step`` (one per optimizer step), ``validation`` (loss on
fixed triples), ``ranks`` (means of each rank since the last such line, see :class:`sdtune.training.ranks.RankTimes`),
``stopped`` (the last line of a run that was asked to stop).
``time`` is the Unix time of writing. Other times are seconds on rank 0, or lists with one value per rank. ``loss`` is
the mean over all ranks. ``step_s`` is the time of the whole step; ``forward_s``, ``backward_s`` and ``sync_s``
(all-reduce, and waiting for the slowest rank) are parts of it. ``encode_s``, for pictures that the step showed for the
first time, is not.
"""

import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sdtune.errors import BadInput
from sdtune.files import write_atomically
from standalone import run_state


class Metrics:
    """Appends to the file and to Accelerate's tracker. A resumed run first removes the lines after its checkpoint."""

    def __init__(self, path: Path, first_step: int = 0, accelerator: Accelerator | None = None) -> None:
        """Open ``path``.

        Args:
            path: the file.
            first_step: optimizer steps of the checkpoint that the run resumes from; 0 for a new run.
            accelerator: has the tracker, if one was asked for; it writes to ``tensorboard/`` in the run folder.
        """
        kept = [m for m in read_metrics(path) if m.get("step", 0) <= first_step] if first_step and path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._accelerator, self._first_step, self._tracking = accelerator, first_step, False

    def write(self, kind: str, **fields: Any) -> None:
        """Append one object."""
        self._file.write(json.dumps({"kind": kind, "time": time.time(), **fields}) + "\n")
        if self._accelerator is None or not self._accelerator.log_with or "step" not in fields:
            return
        if not self._tracking:  # late, so that the first step does not wait half a second for its import
            options = {"tensorboard": {"purge_step": self._first_step + 1 if self._first_step else None}}
            self._accelerator.init_trackers("tensorboard", init_kwargs=options)
            self._tracking = True
        numbers = {k: v for k, v in fields.items() if k != "step" and isinstance(v, (int, float))}
        self._accelerator.log({f"{kind}/{k}": v for k, v in numbers.items()}, step=fields["step"])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All objects of a file, in order. A last line that a crash left incomplete is ignored.

    Raises:
        BadInput: another line is damaged, as by an editor or a disk, or of another program; the message has its number.
    """
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            one = json.loads(line) if line else None
        except (ValueError, RecursionError):
            one = False
        if isinstance(one, dict) and run_state.is_metric(one):
            found.append(one)
        elif one is not None:
            raise BadInput(f"line {number} of {path} is damaged; remove this line")
    return found
