"""The cores that this process may use, by NUMA node, one CPU for each physical core."""

import os
from itertools import pairwise
from pathlib import Path

from standalone.limits import cpu_quota

_SYSTEM = Path("/sys/devices/system")


def parse_ranges(text: str) -> list[int]:
    """The numbers in a list of ranges such as ``0-3,8``."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def first_siblings(cpus: set[int], system: Path = _SYSTEM) -> list[int]:
    """One CPU of each physical core among ``cpus``: hyper-threads share the units that compute."""
    kept = []
    for cpu in sorted(cpus):
        file = system / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        siblings = parse_ranges(file.read_text()) if file.is_file() else [cpu]
        if cpu == min(cpus.intersection(siblings), default=cpu):
            kept.append(cpu)
    return kept


def numa_nodes(system: Path = _SYSTEM, quota: float | None = None) -> list[list[int]]:
    """The physical cores of each NUMA node that this process may use; one node where the Linux kernel lists none.

    Args:
        system: in place of /sys/devices/system.
        quota: CPUs whose time may be used; further cores are left out.
    """
    allowed = os.sched_getaffinity(0)
    nodes = []
    for folder in sorted((system / "node").glob("node[0-9]*"), key=lambda p: int(p.name[4:])):
        cpus = allowed.intersection(parse_ranges((folder / "cpulist").read_text()))
        if cpus:
            nodes.append(first_siblings(cpus, system))
    nodes = nodes or [first_siblings(allowed, system)]
    left = sum(map(len, nodes)) if quota is None else max(1, int(quota))
    kept = []
    for node in nodes:
        kept.append(node[:left])
        left -= len(kept[-1])
    return list(filter(None, kept))


def split_cores(processes: int, system: Path = _SYSTEM) -> list[list[int]]:
    """The cores of each of ``processes`` processes; where possible no process spans two NUMA nodes.

    0 processes: one for each NUMA node. More processes than cores: some share a core.
    """
    nodes = numa_nodes(system, cpu_quota())
    if processes == 0:
        return nodes
    cores = [core for node in nodes for core in node]
    if processes >= len(cores):
        return [[cores[i % len(cores)]] for i in range(processes)]
    bounds = [round(i * len(cores) / processes) for i in range(processes + 1)]
    return [cores[a:b] for a, b in pairwise(bounds)]
