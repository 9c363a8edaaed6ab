"""The cores and the memory that this process may use: those of the host, or less where a limit is set.

Limits come from a container, a batch system or systemd, as the set of CPUs that a process may run on (``taskset``,
cpusets) and as cgroups of version 1 or 2. A cgroup is also limited by every cgroup that it is in.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60  # bytes; version 1 writes "no limit" as a number near 2^63
_SYSTEM = Path("/sys/devices/system/cpu")
PROCESS = Path("/proc/self")


def _read(path: Path) -> str:
    """The text of a small file; empty where there is none, or the kernel does not let it be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _below(path: str, root: str) -> str:
    """The part of a cgroup's path below the root of a mount; empty where it is not below it, as in a container."""
    root = root.rstrip("/")
    return path[len(root) :].strip("/") if f"{path}/".startswith(f"{root}/") and "/.." not in path else ""


def cgroups(controller: str, process: Path = PROCESS) -> Iterator[Path]:
    """The folders of the cgroups that limit this process, the innermost first.

    Args:
        controller: ``cpu`` or ``memory``.
        process: in place of /proc/self.
    """
    own = [line.split(":", 2) for line in _read(process / "cgroup").splitlines()]
    for line in _read(process / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            path = next((path for number, _, path in own if number == "0"), None)
        elif kind == "cgroup" and controller in options.split(","):
            path = next((path for _, names, path in own if controller in names.split(",")), None)
        else:
            continue
        if path is None:
            continue
        root, point = before.split()[3:5]
        folder = Path(point) / _below(path, root)
        while True:
            yield folder
            if folder == Path(point):
                break
            folder = folder.parent


def cpu_quota(process: Path = PROCESS) -> float | None:
    """CPUs whose time the cgroups allow, such as 1.5; None without a limit."""
    allowed = []
    for folder in cgroups("cpu", process):
        limit = _read(folder / "cpu.max").split() or [
            _read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if limit[0].isdigit() and limit[1].isdigit():  # neither "max", nor -1, nor missing
            allowed.append(int(limit[0]) / int(limit[1]))
    return min(allowed, default=None)


def physical_cores(cpus: set[int], system: Path = _SYSTEM) -> int:
    """How many physical cores a set of CPUs has: hyper-threads share the units that compute."""
    return len({_read(system / f"cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu) for cpu in cpus})


def usable_cores(process: Path = PROCESS, system: Path = _SYSTEM) -> int:
    """Physical cores that this process may use, at least one."""
    cores = physical_cores(os.sched_getaffinity(0), system)
    quota = cpu_quota(process)
    return cores if quota is None else max(1, min(cores, int(quota)))


def memory_limits(process: Path = PROCESS) -> Iterator[tuple[int, int]]:
    """For each cgroup with a limit of memory: the limit, and what is left of it, in bytes.

    Pages of files do not count as used, since the kernel drops them when memory is needed.
    """
    for folder in cgroups("memory", process):
        limits = [_read(folder / name).strip() for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limit = min((int(text) for text in limits if text.isdigit()), default=_UNLIMITED)
        if limit < _UNLIMITED:
            used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or "0"
            counts = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            # version 1 counts the cgroups below apart, and all together with the prefix total_
            names = ("active_file", "inactive_file")
            files = sum(int(counts.get(f"total_{name}") or counts.get(name) or "0") for name in names)
            yield limit, limit - max(0, int(used) - files)


def _meminfo(name: str) -> int:
    """Bytes of a field of /proc/meminfo, which a container may have of its own, as with LXCFS."""
    fields = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines())
    return 1024 * int(fields[name].split()[0])


def total_memory(process: Path = PROCESS) -> int:
    """Bytes of memory that this process may use at most."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in memory_limits(process))])


def available_memory(process: Path = PROCESS) -> int:
    """Bytes that can be allocated without swapping, as the Linux kernel estimates them, and as the cgroups allow."""
    return max(0, min([_meminfo("MemAvailable"), *(left for _, left in memory_limits(process))]))


def describe() -> dict[str, object]:
    """What a host offers: physical cores, MB of memory and what is free of it; which of them a cgroup limits."""
    return {
        "cores": usable_cores(),
        "memory_mb": total_memory() >> 20,
        "available_mb": available_memory() >> 20,
        "cpu_quota": cpu_quota(),
        "memory_limited": any(True for _ in memory_limits()),
    }


def main(argv: list[str]) -> None:
    """Print the description as JSON."""
    text = "The cores and the memory that a process here may use, as JSON."
    argparse.ArgumentParser(prog="limits.py", description=text).parse_args(argv)
    print(json.dumps(describe()))


if __name__ == "__main__":
    main(sys.argv[1:])
