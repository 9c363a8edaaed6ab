"""What ``launch.sh``, mpirun and the ranks print: to ``logs/launch.log``, and the last lines kept for messages."""

import os
import re
import signal
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from standalone import host_claims

_KEPT = 60  # lines that are kept of each rank
# how each program marks a line of a rank: mpirun -prepend-rank, srun --label
_RANK = {"mpirun": re.compile(r"\[(\d+)\] ?(.*)"), "srun": re.compile(r" *(\d+): ?(.*)")}
_EMPTY_RANK = re.compile(r"\[\d+\] ?$")  # mpirun's prefix of a line that did not come
_KILLED = re.compile(r"RANK (\d+) PID \d+|KILLED BY SIGNAL: (\d+)")
_ENDED_BY_SLURM = re.compile(r"srun: error: \S+: tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?$")
_SIGNALS = {signal.strsignal(number): int(number) for number in signal.Signals}


def killed_ranks(lines: list[str]) -> list[tuple[int, int]]:
    """Ranks and the signals that ended them, in the order in which Hydra or srun reports them."""
    found, rank = [], None
    for line in lines:
        if slurm := _ENDED_BY_SLURM.match(line):
            number = _SIGNALS.get(slurm.group(2))
            found += [(task, number) for task in host_claims.parse_numbers(slurm.group(1)) if number is not None]
            continue
        for match in _KILLED.finditer(line):
            if match.group(1) is not None:
                rank = int(match.group(1))
            elif rank is not None:
                found.append((rank, int(match.group(2))))
                rank = None
    return found


def reported_by_srun(lines: Iterable[str]) -> set[int]:
    """Ranks of which srun says how they ended; it hears that from Slurm's daemon on their host."""
    found = filter(None, map(_ENDED_BY_SLURM.match, lines))
    return {rank for one in found for rank in host_claims.parse_numbers(one.group(1))}


class LauncherOutput:
    """The launcher's output, read without blocking."""

    def __init__(self, pipe: IO[bytes], log: Path, program: str = "mpirun") -> None:
        """Read ``pipe`` and write ``log``; ``program`` marks the lines of ranks, ``mpirun`` or ``srun``."""
        self.pipe, self._mark = pipe, _RANK[program]
        self.at_end = False
        """Whether all processes that could write have closed their end."""
        self.launcher: deque[str] = deque(maxlen=_KEPT)
        """Lines of launch.sh and mpirun."""
        self.ranks: dict[int, deque[str]] = {}
        """Lines of each rank."""
        self._pending = b""
        self._log = log.open("ab", buffering=0)
        os.set_blocking(pipe.fileno(), False)

    def read(self) -> None:
        """Read what is there."""
        data = os.read(self.pipe.fileno(), 65_536)
        if not data:
            self.at_end = True
            return
        try:
            self._log.write(data)
        except OSError as error:  # a full disk; the lines are kept here
            self.launcher.append(f"logs/launch.log: {error.strerror}")
        *lines, self._pending = (self._pending + data).split(b"\n")
        for raw in lines:
            line = _EMPTY_RANK.sub("", raw.decode(errors="replace"))
            if found := self._mark.match(line):
                self.ranks.setdefault(int(found.group(1)), deque(maxlen=_KEPT)).append(found.group(2))
            else:
                self.launcher.append(line)

    def close(self) -> None:
        """Close the log."""
        self._log.close()
