"""Which hosts are used by other runs, of any user: for a run that waits for them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sdtune.host.ssh import command_on
from sdtune.launch.state import Plan
from standalone import host_claims


def others_here(run: str, cores: str) -> list[dict[str, Any]]:
    """The other runs that use cores of this host.

    Args:
        run: folder of the run that asks; its own ranks do not count.
        cores: those that it needs, such as ``0-13``; empty: all.
    """
    wanted = host_claims.parse_numbers(cores) or sorted(os.sched_getaffinity(0))
    mine = host_claims.digest_of(run)
    others = [one for one in host_claims.shares() if one["folder"] != mine]
    return host_claims.in_the_way(others, wanted)


def _ask(run: Path, address: str, cores: str) -> list[dict[str, Any]]:
    """The same on another host; empty when it does not answer, of which the launch tells more."""
    command = [sys.executable, "-P", "-m", "sdtune.launch", "shares", str(run), cores]
    try:
        done = subprocess.run(
            command_on(address, command), stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return []
    return found


def used_by_others(run: Path, plan: Plan, hosts: Mapping[str, str]) -> dict[str, str]:
    """Which hosts other runs use, and which run that is, in words.

    Args:
        run: folder of the run that wants them.
        plan: its cores.
        hosts: name and address of each host that it wants, the primary, which asks, first.
    """
    primary = next(iter(hosts))

    def ask(name: str) -> list[dict[str, Any]]:
        cores = plan.cores.get(name, "")
        return others_here(str(run), cores) if name == primary else _ask(run, hosts[name], cores)

    with ThreadPoolExecutor(max_workers=8) as pool:
        found = dict(zip(hosts, pool.map(ask, hosts), strict=True))
    return {name: host_claims.describe(others) for name, others in found.items() if others}
