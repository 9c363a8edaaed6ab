"""What the supervisor reads from the run folder, ``supervisor.json``, and what it writes there, ``state.json``."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdtune.files import write_atomically
from standalone import run_state

_RESERVE = 131_072  # bytes; state.json takes a few thousand


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``supervisor.json``, which the role launch_config writes."""

    hosts: dict[str, str]
    """Name in the inventory and address of each host, the primary first; empty where Slurm chooses them."""
    ranks_per_node: int
    """Ranks on each host."""
    gradient_accumulation_steps: int
    """Of the job; it is raised when the run goes on with fewer hosts."""
    stall_timeout: float
    """Seconds without a line in metrics.jsonl after which the job counts as hung."""
    start_timeout: float
    """The same until the first step of an attempt: ranks have to start, meet, load, and validate."""
    host_timeout: float
    """Seconds without a line from an agent after which its host counts as lost."""
    host_wait: float
    """Seconds for which a restart waits for a lost host to come back."""
    max_restarts: int
    """Restarts before the run counts as failed."""
    on_host_loss: str
    """What to do when a lost host does not come back: ``fail`` or ``continue``."""
    wait_for_hosts: bool = False
    """Whether the run waits for hosts that another run uses, instead of being refused."""
    cores: dict[str, str] = field(default_factory=dict)
    """By host, the cores that the run was given there, such as ``0-13``; empty: all."""
    launcher: str = "hydra"
    """What starts the ranks: ``hydra``, Intel MPI's own, or ``slurm``, which also chooses the hosts."""
    class_pictures: bool = False
    """Whether the supervisor has the missing class pictures drawn before the first attempt."""
    signal_seconds: float = 0
    """With Slurm, how many seconds before the time limit of the job a checkpoint is written."""

    @property
    def program(self) -> str:
        """The program that starts the ranks."""
        return "srun" if self.launcher == "slurm" else "mpirun"

    @classmethod
    def read(cls, run: Path) -> "Plan":
        """Read it from the run folder."""
        return cls(**json.loads((run / "supervisor.json").read_text(encoding="utf-8")))


class Heartbeat:
    """Shows by the time of the lock file that the supervisor works, and notices when its run folder is deleted."""

    def __init__(self, run: Path) -> None:
        self.path = run / run_state.SUPERVISOR_LOCK
        self.path.touch()
        self._file, self._due = self._which(), 0.0

    def _which(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def beat(self) -> bool:
        """Set the time, once a second at most.

        Returns:
            False when the lock file is gone, or is another one: then the run folder was deleted, or made anew.
        """
        if time.monotonic() < self._due:
            return True
        self._due = time.monotonic() + 1
        try:
            os.utime(self.path)
            return self._which() == self._file
        except FileNotFoundError:
            return False


class StateFile:
    """``state.json``: replaced as a whole, also on a full disk, for which some space is reserved.

    When the run folder was deleted, nothing is written, because nobody could read it.
    """

    def __init__(self, run: Path, **facts: Any) -> None:
        self.path, self.reserve, self.facts = run / run_state.STATE, run / ".reserve", facts
        self.reserve.write_bytes(b"\0" * _RESERVE)

    def write(self, **facts: Any) -> None:
        """Change some facts, and write all of them; what a run waits for is one only while it waits."""
        self.facts |= facts
        if self.facts["state"] != "waiting":
            self.facts.pop("waiting_for", None)
            self.facts.pop("used_by", None)
        text = json.dumps({**self.facts, "updated": time.time()}, indent=1) + "\n"
        try:
            write_atomically(self.path, text)
        except OSError:
            if not self.path.parent.is_dir():
                return
            self.reserve.unlink(missing_ok=True)
            write_atomically(self.path, text)

    def close(self) -> None:
        """Free the reserved space."""
        self.reserve.unlink(missing_ok=True)
