"""Which hosts count as lost: silent for ``host_timeout``, and then not back within ``host_wait`` before a restart.

A host is silent when the agent of one of its ranks sends nothing. Before a restart, a host is back when it answers ssh
and no process of the last attempt is left there. What happens then is ``on_host_loss``, see
:meth:`sdtune.launch.supervisor.Supervisor.supervise`.
"""

import math
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


def seconds_up(run: Path, plan: Plan, address: str) -> float | None:
    """For how long a host has been up, once no process of the run is left on it; None while it does not answer.

    The primary, which asks, has been up all the time.
    """
    if address == next(iter(plan.hosts.values())):
        return math.inf
    command = [sys.executable, "-P", "-m", "sdtune.launch", "sweep", str(run)]
    try:
        done = subprocess.run(
            command_on(address, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=30,
            check=False,
        )
        return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def wait_for_hosts(
    run: Path, plan: Plan, waiting: Callable[[list[str]], bool], began: float
) -> tuple[list[str], list[str]]:
    """Wait until all hosts of the plan are back.

    Args:
        run: folder of the run.
        plan: its hosts, and how many seconds they get.
        waiting: is told each second which hosts are absent, and returns False to stop waiting.
        began: Unix time at which the attempt began that has ended.

    Returns:
        Names of the hosts that are lost, and of those that were rebooted since ``began``.
    """
    end = time.monotonic() + plan.host_wait
    absent, rebooted = list(plan.hosts), list[str]()
    while True:
        with ThreadPoolExecutor(len(absent)) as pool:  # a host that does not answer takes half a minute
            up = dict(zip(absent, pool.map(lambda name: seconds_up(run, plan, plan.hosts[name]), absent), strict=True))
        rebooted += [name for name, seconds in up.items() if seconds is not None and seconds < time.time() - began]
        absent = [name for name, seconds in up.items() if seconds is None]
        if not absent or time.monotonic() >= end or not waiting(absent):
            return absent, rebooted
        time.sleep(1)
