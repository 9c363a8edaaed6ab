"""Which hosts count as lost: silent for ``host_timeout``, and then not back within ``host_wait`` before a restart.

A host is silent when the agent of one of its ranks sends nothing. Before a restart, a host is back when it answers ssh
and no process of the last attempt is left there. One that answers while such processes cannot be ended is not lost: its
user has to mend it. What happens then is ``on_host_loss``, see
:meth:`sdtune.launch.supervisor.Supervisor.supervise`.
"""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdtune.host.ssh import SSH_FAILED, command_on
from sdtune.launch.agent_server import Connection
from sdtune.launch.state import Plan

_SWEEP_SECONDS = 30  # for a login, ten seconds of waiting for processes to end, and a slow disk


def first_silent(connections: Mapping[int, Connection], now: float, timeout: float) -> tuple[int, float] | None:
    """The first rank whose agent has sent nothing for longer than ``timeout`` seconds, and for how many seconds."""
    for rank, connection in sorted(connections.items()):
        if not connection.ended and now - connection.last_heard > timeout:
            return rank, now - connection.last_heard
    return None


class SweepFailed(Exception):
    """A host answers, but processes of the run may be left on it. The message says why."""


def seconds_up(run: Path, plan: Plan, address: str) -> float | None:
    """For how long a host has been up, once no process of the run is left on it; None while it does not answer.

    The primary, which asks, has been up all the time.

    Raises:
        SweepFailed: it answers, but does not say that nothing is left.
    """
    if address == next(iter(plan.hosts.values())):
        return math.inf
    command = [sys.executable, "-P", "-m", "sdtune.launch", "sweep", str(run)]
    try:
        done = subprocess.run(
            command_on(address, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SWEEP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == SSH_FAILED:
        return None
    if done.returncode != 0:
        raise SweepFailed(_last_line(done.stderr) or f"it ended with code {done.returncode}")
    said = _last_line(done.stdout)
    try:
        return float(said)
    except ValueError:
        raise SweepFailed(f"it printed {said!r} instead of seconds") from None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


@dataclass
class Hosts:
    """How the hosts of a plan were found before a restart, by their names."""

    lost: list[str] = field(default_factory=list)
    """Those that do not answer."""
    unswept: dict[str, str] = field(default_factory=dict)
    """Why those that answer may still have processes of the last attempt."""
    rebooted: list[str] = field(default_factory=list)
    """Those that were rebooted since that began."""

    @property
    def absent(self) -> list[str]:
        """Those that cannot be used yet, with the reason of those that answer."""
        return [*self.lost, *(f"{name} ({self.fault(name)})" for name in self.unswept)]

    def fault(self, name: str) -> str:
        """What is wrong with a host that answers."""
        return f"answers, but the sweep of left-over processes fails: {self.unswept[name]}"


def _look_at(run: Path, plan: Plan, names: Iterable[str], began: float) -> Hosts:
    """Ask hosts, all at once, as one that does not answer takes half a minute."""

    def ask(name: str) -> float | SweepFailed | None:
        try:
            return seconds_up(run, plan, plan.hosts[name])
        except SweepFailed as error:
            return error

    found, names = Hosts(), list(names)
    with ThreadPoolExecutor(len(names)) as pool:
        answers = dict(zip(names, pool.map(ask, names), strict=True))
    for name, answer in answers.items():
        if isinstance(answer, SweepFailed):
            found.unswept[name] = str(answer)
        elif answer is None:
            found.lost.append(name)
        elif answer < time.time() - began:
            found.rebooted.append(name)
    return found


def wait_for_hosts(run: Path, plan: Plan, waiting: Callable[[list[str]], bool], began: float) -> Hosts:
    """Wait until all hosts of the plan are back.

    Args:
        run: folder of the run.
        plan: its hosts, and how many seconds they get.
        waiting: is told each second which hosts are absent, and returns False to stop waiting.
        began: Unix time at which the attempt began that has ended.
    """
    end = time.monotonic() + plan.host_wait
    found, rebooted = Hosts(lost=list(plan.hosts)), list[str]()
    while True:
        found = _look_at(run, plan, [*found.lost, *found.unswept], began)
        rebooted += found.rebooted
        if not found.absent or time.monotonic() >= end or not waiting(found.absent):
            return replace(found, rebooted=rebooted)
        time.sleep(1)
