"""Numbers in environment variables: by which launchers tell a process which rank it is, and those of our launch files.

Accelerate reads the same variables, in the same order; it, too, takes -1 for one that is not set.
"""

import os
import re
from collections.abc import Mapping, Sequence

from sdtune.errors import BadInput, shown
from standalone import host_claims

RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Number of this rank; the first that is set counts."""
SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Number of all ranks."""
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""Number of this rank among those of its host."""
LOCAL_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
"""Number of ranks of this host."""
_OF_SEVERAL = ("MASTER_PORT", "OMP_NUM_THREADS", "CCL_WORKER_COUNT")  # no library reads them where there is one rank
_LEAST = {**dict.fromkeys((*RANK, *LOCAL_RANK, "SLURM_RESTART_COUNT", "CCL_WORKER_COUNT"), 0)}  # of others: 1
_MOST = {"MASTER_PORT": 65535}
_MANY = 1_000_000
_REMEDY = "unset it, or start the run with launch.sh in its folder, which sets it"


def problem(name: str, text: str) -> str:
    """What is wrong with the text of a variable that holds a number; empty if nothing is."""
    least, most = _LEAST.get(name, 1), _MOST.get(name, _MANY)
    if re.fullmatch("[0-9]{1,9}", text.strip()) and least <= int(text) <= most:
        return ""
    return f"the environment variable {name} is {shown(text)}, not a whole number from {least} to {most}; {_REMEDY}"


def is_set(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable has a value; an empty one has none."""
    return environment.get(name, "").strip() not in ("", "-1")


def number(name: str, default: int, environment: Mapping[str, str] = os.environ) -> int:
    """The number in a variable.

    Raises:
        BadInput: it holds something else; the message names it, its value, and the remedy.
    """
    if not is_set(name, environment):
        return default
    if wrong := problem(name, environment[name]):
        raise BadInput(wrong)
    return int(environment[name])


def first(names: Sequence[str], default: int) -> int:
    """The number in the first of several variables that is set.

    Raises:
        BadInput: it is no number.
    """
    return next((number(name, default) for name in names if is_set(name)), default)


def numbers(name: str) -> list[int]:
    """The numbers in a variable that holds a list such as ``0-3,8``; none where it is not set.

    Raises:
        BadInput: it is no such list.
    """
    text = os.environ.get(name, "")
    if not re.fullmatch(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*|", text.strip()):
        raise BadInput(f"the environment variable {name} is {shown(text)}, no list such as 0-3,8; {_REMEDY}")
    return host_claims.parse_numbers(text)


def _contradictions() -> list[str]:
    """Ranks that are not below the number of ranks, and a number of ranks without a rank."""
    found = []
    for ranks, sizes in ((RANK, SIZE), (LOCAL_RANK, LOCAL_SIZE)):
        size = next(filter(is_set, sizes), None)
        if size is None or number(size, 1) == 1:
            continue
        rank = next(filter(is_set, ranks), None)
        says = f"the environment variable {size} says that {os.environ[size].strip()} ranks were started"
        if rank is None and sizes is SIZE:
            found.append(f"{says}, but none of {', '.join(ranks)} says which this is; {_REMEDY}")
        elif rank is not None and number(rank, 0) >= number(size, 1):
            found.append(f"{says}, but {rank} is {os.environ[rank].strip()}; {_REMEDY}")
    return found


def check_rank() -> None:
    """Check the variables that say which rank this process is, before a library reads them; remove empty ones.

    Raises:
        BadInput: with everything that is wrong.
    """
    names = [*RANK, *SIZE, *LOCAL_RANK, *LOCAL_SIZE, *_OF_SEVERAL]
    for name in names:
        if name in os.environ and not os.environ[name].strip():
            del os.environ[name]
    of_all = [name for name in names if name not in _OF_SEVERAL]
    wrong = [problem(name, os.environ[name]) for name in of_all if is_set(name)]
    if not any(wrong):
        wrong = _contradictions()
        if first(SIZE, 1) > 1:
            wrong += [problem(name, os.environ[name]) for name in _OF_SEVERAL if name in os.environ]
    if any(wrong):
        raise BadInput("; ".join(filter(None, wrong)))
