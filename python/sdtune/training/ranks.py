"""What rank 0 records of all ranks: their hosts, the means of their step times, and who finished the run."""

import os
import platform
import secrets
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sdtune.errors import TrainingFailed
from sdtune.host.facts import describe_hardware, describe_host
from sdtune.host.memory import peak_rss_bytes
from sdtune.launch.meeting import Attempt, digest_of


def group_by_host(described: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object for each host, by first rank: the facts that its first rank gathered, and the list ``ranks``."""
    hosts: dict[str, dict[str, Any]] = {}
    for facts in described:
        others = {key: value for key, value in facts.items() if key != "rank"}
        hosts.setdefault(facts["host"], {**others, "ranks": []})["ranks"].append(facts["rank"])
    return list(hosts.values())


def describe_hosts(rank: int, world_size: int) -> list[dict[str, Any]]:
    """Facts of every host that has ranks, the same on all ranks. A collective operation: every rank calls it."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME") if world_size > 1 else None
    return group_by_host(gather_object([{**describe_host(), **describe_hardware(interface), "rank": rank}]))


def sign(accelerator: Accelerator, samples: int) -> dict[str, Any]:
    """Who finished a run, for ``finished.json``: the same on all ranks. A collective operation: every rank calls it.

    Args:
        accelerator: of this run.
        samples: on which this rank trained in this attempt.

    Returns:
        ``attempt``; ``token_sha256``, the digest of its token, or a random one for ranks that were started without
        launch.sh and have none; ``ranks``: number, host, process and samples of each.

    Raises:
        TrainingFailed: a rank belongs to another attempt.
    """
    attempt = Attempt.of(os.environ)
    mine = {"rank": accelerator.process_index, "host": platform.node(), "pid": os.getpid(), "samples": samples}
    own = digest_of(secrets.token_hex(16))
    signed = gather_object([{**mine, "attempt": attempt.number, "token_sha256": attempt.digest, "own": own}])
    random = signed[0]["own"]
    shared = {"attempt": attempt.number, "token_sha256": attempt.digest}
    for rank in signed:
        del rank["own"]
        if {key: rank.pop(key) for key in shared} != shared:
            raise TrainingFailed(f"rank {rank['rank']} on {rank['host']} is of another attempt; nothing was saved")
    return {"attempt": attempt.number, "token_sha256": attempt.digest or random, "ranks": signed}


class RankTimes:
    """Seconds of this rank's steps since they were last gathered.

    A step ends for all ranks at the same time, so its length does not show which rank was slow. The time that a rank
    computed does, and so does the time that it then waited. Both are gathered with a validation, not at each step.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._compute_s = self._sync_s = 0.0

    def add(self, compute_s: float, sync_s: float) -> None:
        """Add one step."""
        self.steps += 1
        self._compute_s += compute_s
        self._sync_s += sync_s

    def gather(self, accelerator: Accelerator) -> dict[str, Any]:
        """Means of every rank in the order of ranks, and its peak memory; then count anew. Every rank calls it."""
        n = max(1, self.steps)
        mine = torch.tensor([[self._compute_s / n, self._sync_s / n, peak_rss_bytes()]], dtype=torch.float64)
        compute_s, sync_s, rss = accelerator.gather(mine).T.tolist()
        found = {"steps": self.steps, "compute_s": compute_s, "sync_s": sync_s, "peak_rss_bytes": [int(x) for x in rss]}
        self.steps, self._compute_s, self._sync_s = 0, 0.0, 0.0
        return found
