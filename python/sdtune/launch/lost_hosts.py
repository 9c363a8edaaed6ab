"""Which hosts count as lost: silent for ``host_timeout``, and then not back within ``host_wait`` before a restart.

A host is silent when the agent of one of its ranks sends nothing. Before a restart, a host is back when it answers ssh
and no process of the last attempt is left there. What happens then is ``on_host_loss``, see
:meth:`sdtune.launch.supervisor.Supervisor.supervise`.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sdtune.host.ssh import command_on
from sdtune.launch.agent_server import Connection
from sdtune.launch.state import Plan


def first_silent(connections: Mapping[int, Connection], now: float, timeout: float) -> tuple[int, float] | None:
    """The first rank whose agent has sent nothing for longer than ``timeout`` seconds, and for how many seconds."""
    for rank, connection in sorted(connections.items()):
        if not connection.ended and now - connection.last_heard > timeout:
            return rank, now - connection.last_heard
    return None


def is_back(run: Path, plan: Plan, address: str) -> bool:
    """Whether a host answers, and no process of the run is left on it; true for the primary, which asks."""
    if address == next(iter(plan.hosts.values())):
        return True
    command = [sys.executable, "-P", "-m", "sdtune.launch", "sweep", str(run)]
    try:
        done = subprocess.run(
            command_on(address, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def wait_for_hosts(run: Path, plan: Plan, waiting: Callable[[list[str]], bool]) -> list[str]:
    """Wait until all hosts of the plan are back.

    Args:
        run: folder of the run.
        plan: its hosts, and how many seconds they get.
        waiting: is told each second which hosts are absent, and returns False to stop waiting.

    Returns:
        Names of the hosts that are lost.
    """
    end = time.monotonic() + plan.host_wait
    absent = list(plan.hosts)
    while True:
        with ThreadPoolExecutor(len(absent)) as pool:  # a host that does not answer takes half a minute
            back = list(pool.map(lambda name: is_back(run, plan, plan.hosts[name]), absent))
        absent = [name for name, answers in zip(absent, back, strict=True) if not answers]
        if not absent or time.monotonic() >= end or not waiting(absent):
            return absent
        time.sleep(1)
