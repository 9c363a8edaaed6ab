"""The shape of a job: ranks, threads and precision, derived from the hosts that run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict


class HostShape(TypedDict):
    """What one host offers: physical cores, the ranks that it can hold, and whether it has instructions for bf16."""

    cores: int
    ranks: int
    bf16: bool


BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def has_bf16(flags: Iterable[str]) -> bool:
    """Whether a processor with these flags of /proc/cpuinfo has instructions for bf16."""
    return not BF16_FLAGS.isdisjoint(flags)


def numa_count(ranges: str | None) -> int:
    """Number of NUMA nodes in the Linux kernel's notation, such as ``0-3,8``; 1 where it names none."""
    count = 0
    for part in filter(None, (ranges or "").strip().split(",")):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return max(1, count)


def host_ranks(
    cores: int | str, numa_nodes: int, cores_per_rank: int | str, memory_mb: int | str, memory_mb_per_rank: int | str
) -> int:
    """Ranks that one host can hold.

    One for every ``cores_per_rank`` cores, at least one for each NUMA node so that no rank spans two, and no more than
    fit in memory.
    """
    by_cores = numa_nodes * math.ceil(int(cores) / numa_nodes / int(cores_per_rank))
    by_memory = int(memory_mb) // int(memory_mb_per_rank)
    return max(1, min(by_cores, by_memory))


def core_numbers(text: str) -> list[int]:
    """Numbers of a list of cores in the Linux kernel's notation, such as ``0-3,8``, in its order."""
    numbers: list[int] = []
    for part in filter(None, str(text).replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def core_count(text: str) -> int:
    """How many cores such a list has."""
    return len(set(core_numbers(text)))


def cores_of_ranks(text: str, ranks: int | str) -> list[str]:
    """Share the cores of a run out among its ranks on a host: each gets as many, adjacent ones; a rest is left over."""
    numbers = sorted(set(core_numbers(text)))
    each = max(1, len(numbers) // int(ranks))
    return [",".join(map(str, numbers[rank * each : (rank + 1) * each] or numbers)) for rank in range(int(ranks))]


def job_shape(
    shapes: Mapping[str, HostShape],
    hosts: int,
    ranks_per_host: int | str = 0,
    threads_per_rank: int | str = 0,
    comm_workers: int | str = 0,
) -> dict[str, Any]:
    """Derive the shape of a job from those of its hosts: MPI starts as many ranks on each, so the smallest decides.

    Args:
        shapes: {host: its shape}, of the hosts that answered.
        hosts: How many hosts the job has.
        ranks_per_host: Ranks on each host; 0 derives them.
        threads_per_rank: Threads of each rank; 0 shares the cores out.
        comm_workers: Cores of each rank that are left to communication.

    Returns:
        ``ranks`` on each host, ``threads`` of each, ``cores`` of the smallest host, ``world_size``; ``smallest``: that
        host, and ``largest_cores``, where hosts differ; ``float32_hosts``: those without instructions for bf16.
    """
    known = list(shapes.values())
    cores = min((shape["cores"] for shape in known), default=1)
    ranks = int(ranks_per_host) or min((shape["ranks"] for shape in known), default=1)
    most = max((shape["cores"] for shape in known), default=cores)
    return {
        "ranks": ranks,
        "threads": int(threads_per_rank) or max(1, cores // ranks - int(comm_workers)),
        "cores": cores,
        "world_size": hosts * ranks,
        "smallest": min(shapes, key=lambda host: shapes[host]["cores"]) if most > cores else "",
        "largest_cores": most,
        "float32_hosts": [host for host, shape in shapes.items() if not shape["bf16"]],
    }


def job_precision(shape: Mapping[str, Any], asked: str) -> str:
    """Mixed precision of a job: what is asked for; ``auto`` is bf16 where every host has instructions for it."""
    if asked != "auto":
        return asked
    return "no" if shape["float32_hosts"] else "bf16"


def job_summary(shape: Mapping[str, Any], asked: str = "") -> str:
    """One line about the shape of a job: ranks, threads, the host that limits them, and why this precision."""
    text = f"{shape['world_size']} ranks, {shape['ranks']} on each host, of {shape['threads']} threads"
    if shape["smallest"]:
        text += f"; the smallest host decides: {shape['smallest']} has {shape['cores']} cores, "
        text += f"others up to {shape['largest_cores']}"
    if asked == "auto" and shape["float32_hosts"]:
        hosts = ", ".join(shape["float32_hosts"])
        text += f"; in float32, as {hosts} without instructions for bf16 would be slower in it"
    elif asked == "auto":
        text += "; in bf16"
    return text


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {
            "has_bf16": has_bf16,
            "numa_count": numa_count,
            "host_ranks": host_ranks,
            "core_count": core_count,
            "cores_of_ranks": cores_of_ranks,
            "job_shape": job_shape,
            "job_precision": job_precision,
            "job_summary": job_summary,
        }
