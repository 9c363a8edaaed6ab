"""Which cores a rank gets where Slurm starts it: those that Slurm has bound it to, or a share of those of the job."""

import os
import platform
from collections.abc import Sequence

from sdtune.errors import BadInput

LAUNCHER = "SDTUNE_LAUNCHER"
"""Environment variable, set by env.sh: ``slurm`` where Slurm starts the ranks."""


def started_by_slurm() -> bool:
    """Whether this process is a rank of a batch job."""
    return os.environ.get(LAUNCHER) == "slurm"


def cores_of_rank(allowed: Sequence[int], local_rank: int, ranks: int, threads: int) -> list[int]:
    """Cores of a rank.

    Args:
        allowed: cores that its process may use, one CPU of each.
        local_rank: its number on its host.
        ranks: ranks on the host.
        threads: of each rank.

    Returns:
        A share of its own where all ranks of the host were left the same cores; else the cores that it was bound to.
    """
    if len(allowed) < ranks * threads:
        return list(allowed)
    return list(allowed)[local_rank * threads : (local_rank + 1) * threads]


def check_cores(threads: int, allowed: int) -> None:
    """Refuse a rank whose threads would share cores.

    Args:
        threads: of the rank.
        allowed: how many cores its process may use, hyper-threads not counted.

    Raises:
        BadInput: with the remedy.
    """
    if allowed < threads:
        raise BadInput(
            f"{platform.node()}: a rank of {threads} threads was bound to {allowed} "
            f"{'core' if allowed == 1 else 'cores'}; ask Slurm for whole nodes with slurm_exclusive: true, or set "
            f"launch_config_pin: false, so that srun is told to bind nothing"
        )
