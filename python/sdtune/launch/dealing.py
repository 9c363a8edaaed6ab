"""Which of several runs gets which hosts: the table of runs that go on side by side.

Pure data; :mod:`sdtune.launch.side_by_side` starts the runs and looks at them.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdtune.errors import BadInput

Row = dict[str, Any]
"""A line of the table, see :func:`standalone.run_state.table_row`; also ``began``: when the run got its hosts."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a call of ``train.yml`` asks for."""

    call: str
    """Name under which the launch files of all runs are staged on all hosts."""
    runs: list[str]
    """Names of the runs, in the order in which they start."""
    hosts: dict[str, str]
    """Name and address of each host, the primary first."""
    hosts_per_run: int
    """How many of them each run gets; with Slurm 0, which chooses them."""
    at_once: int = 0
    """With Slurm, how many runs may go on at the same time; 0: as many as it has nodes for."""
    arguments: list[str] = field(default_factory=list)
    """Of launch.sh."""
    host_wait: float = 300
    """Seconds without an answer after which a host counts as lost, and the run that it holds with it."""

    def __post_init__(self) -> None:
        if not self.runs or (self.hosts_per_run and self.hosts_per_run > len(self.hosts)):
            raise BadInput(f"{self.hosts_per_run} hosts for each of {len(self.runs)} runs, and there are {self.hosts}")


def deal(waiting: Sequence[str], free: Sequence[str], each: int) -> dict[str, list[str]]:
    """{run: its hosts} of the runs that can start now, in their order; hosts that are too few for a run stay free."""
    some = [list(free[first : first + each]) for first in range(0, len(free) - each + 1, each)]
    return dict(zip(waiting, some, strict=False))


class Table:
    """Which run waits, which is going on and where, and which hosts do not answer."""

    def __init__(self, request: Request, before: Iterable[Row] = ()) -> None:
        """All runs of a request wait, but those that an earlier table has as going on.

        Args:
            request: what is asked for.
            before: the lines of that table; its author has ended, and a run does not end with it.
        """
        self.request, self.began = request, time.time()
        self.rows: dict[str, Row] = {name: {"run": name, "state": "waiting", "hosts": []} for name in request.runs}
        for row in before:
            if row["state"] == "running" and row["run"] in self.rows and set(row["hosts"]) <= set(request.hosts):
                self.rows[row["run"]] = {**row}
        self.silent: dict[str, float] = {}
        """Hosts that do not answer, and since when, in Unix time."""

    def named(self, state: str) -> list[str]:
        """Names of the runs in a state."""
        return [name for name, row in self.rows.items() if row["state"] == state]

    def free(self) -> list[str]:
        """Hosts that answer, and that no run has."""
        taken = {host for name in self.named("running") for host in self.rows[name]["hosts"]}
        return [host for host in self.request.hosts if host not in taken and host not in self.silent]

    def assign(self) -> dict[str, list[str]]:
        """Give free hosts to waiting runs, which count as running from now on; {run: its hosts}."""
        assigned = deal(self.named("waiting"), self.free(), self.request.hosts_per_run)
        for name, hosts in assigned.items():
            self.rows[name] = {"run": name, "state": "running", "hosts": hosts, "began": time.time()}
        return assigned

    def return_to_queue(self, name: str, silent: Iterable[str]) -> None:
        """A run could not start, because hosts do not answer: it waits for others."""
        self.rows[name] = {"run": name, "state": "waiting", "hosts": []}
        self.silent |= {host: time.time() for host in silent}

    def update(self, name: str, row: Row) -> None:
        """What a look at the run has found; its hosts stay those that it was given."""
        kept: Row = {key: self.rows[name][key] for key in ("hosts", "began") if key in self.rows[name]}
        self.rows[name] = {**row, **kept}

    def end(self, name: str, state: str, reason: str) -> None:
        """A run has ended in this state."""
        self.rows[name] = {"ended": time.time(), **self.rows[name], "state": state, "reason": reason}

    def is_over(self, now: float) -> bool:
        """Whether nothing is left to do at this Unix time; runs that no host is left for have failed then."""
        waiting = self.named("waiting")
        if self.named("running") or not waiting:
            return not waiting and not self.named("running")
        answering = len(self.request.hosts) - len(self.silent)
        lost = [since for since in self.silent.values() if now - since > self.request.host_wait]
        if answering >= self.request.hosts_per_run or len(lost) < len(self.silent):
            return False
        for name in waiting:
            self.end(name, "failed", f"it did not start: {', '.join(self.silent)} do not answer, and no host is left")
        return True

    def written(self) -> Mapping[str, Any]:
        """The table as a file has it."""
        return {
            "call": self.request.call,
            "began": self.began,
            "silent": sorted(self.silent),
            "rows": list(self.rows.values()),
        }
