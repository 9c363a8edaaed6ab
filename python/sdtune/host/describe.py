"""What a reader has to know of the hosts to understand a run's speed, and which ranks the others waited for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sdtune.training.metrics import describe_host, peak_rss_bytes

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""The parts of an instruction set that decide how fast this trains and draws."""


def describe_processor(cpuinfo: str, fallback: str) -> dict[str, Any]:
    """CPU model, physical cores and :data:`FEATURES`, by what /proc/cpuinfo says.

    ``fallback`` is the model's name where the file has none, as on processors that are not x86.
    """
    model, features, cores = fallback, set(), set()
    for block in cpuinfo.split("\n\n"):
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in block.splitlines())}
        if "processor" not in fields:
            continue
        model = fields.get("model name", model)
        features = set(fields.get("flags", "").split())
        cores.add((fields.get("physical id"), fields.get("core id", fields["processor"])))
    return {"cpu": model, "cores": len(cores), "features": [f for f in FEATURES if f in features]}


def link_mbit(interface: str | None, devices: Path = Path("/sys/class/net")) -> int | None:
    """Speed of a network interface in Mbit/s; None where it has none that it tells, as loopback."""
    if interface is None:
        return None
    try:
        speed = int((devices / interface / "speed").read_text(encoding="ascii"))
    except (OSError, ValueError):  # the kernel refuses to read it of an interface that has no link
        return None
    return speed if speed > 0 else None


def revision(package: Path = Path(__file__).parents[1]) -> str | None:
    """The revision of this code that provisioning wrote down beside it; None for a copy that nobody provisioned."""
    file = package.parents[1] / "revision"
    return file.read_text(encoding="ascii").strip() if file.is_file() else None


def _describe_rank(rank: int, world_size: int) -> dict[str, Any]:
    interface = os.environ.get("GLOO_SOCKET_IFNAME") if world_size > 1 else None
    return {
        **describe_host(),
        **describe_processor(Path("/proc/cpuinfo").read_text(encoding="utf-8"), os.uname().machine),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "interface": interface,
        "link_mbit": link_mbit(interface),
        "tcmalloc": "tcmalloc" in Path("/proc/self/maps").read_text(encoding="utf-8"),
        "rank": rank,
    }


def by_host(described: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object a host, in the order of their first ranks, with the list ``ranks``; the rest is of its first rank."""
    hosts: dict[str, dict[str, Any]] = {}
    for facts in described:
        others = {key: value for key, value in facts.items() if key != "rank"}
        hosts.setdefault(facts["host"], {**others, "ranks": []})["ranks"].append(facts["rank"])
    return list(hosts.values())


def describe_hosts(rank: int, world_size: int) -> list[dict[str, Any]]:
    """Every host that has ranks, the same on all of them; every rank calls this, once a run."""
    return by_host(gather_object([_describe_rank(rank, world_size)]))


class RankTimes:
    """Seconds of this rank's steps since they were last gathered.

    A step ends for all ranks at the same time, so its length does not tell who was slow. The time that a rank computed
    does, and so does the time that it then waited. They cross the network with a validation, not with a step.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._compute_s = self._sync_s = 0.0

    def add(self, compute_s: float, sync_s: float) -> None:
        """Take note of one step."""
        self.steps += 1
        self._compute_s += compute_s
        self._sync_s += sync_s

    def gather(self, accelerator: Accelerator) -> dict[str, Any]:
        """Means of every rank, in the order of the ranks, and its memory; begins anew. Every rank calls this."""
        n = max(1, self.steps)
        mine = torch.tensor([[self._compute_s / n, self._sync_s / n, peak_rss_bytes()]], dtype=torch.float64)
        compute_s, sync_s, rss = accelerator.gather(mine).T.tolist()
        found = {"steps": self.steps, "compute_s": compute_s, "sync_s": sync_s, "peak_rss_bytes": [int(x) for x in rss]}
        self.steps, self._compute_s, self._sync_s = 0, 0.0, 0.0
        return found
