"""The meeting of the ranks: each shows that it belongs to this attempt of this run, before anything is exchanged.

Rank 0 opens the rendezvous, torch's TCPStore, and writes there which run and attempt it belongs to. Every other rank
reads that first. One that finds another attempt there ends with an error, and has changed nothing in it. What the ranks
write afterwards has the token in its key, so that two attempts cannot meet even where both have one port.

With the backend mpi there is no rendezvous: Hydra itself tells the ranks of one launch about each other.
"""

import json
import os
import platform
import socket
import time
from datetime import timedelta

from accelerate.utils import get_cpu_distributed_information
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, TCPStore  # what torch.distributed has, with its types

from sdtune.errors import BadInput, HostBusy, PortTaken
from sdtune.host.interface import interface_towards
from sdtune.launch import binding, variables
from sdtune.launch.meeting import Attempt
from sdtune.settings import Job
from standalone import host_claims
from standalone.limits import physical_cores

_IDENTITY = "sdtune/attempt"
_CLAIMS: list[socket.socket] = []  # open until this process ends
_BEGINS: list[socket.socket] = []  # open until all ranks have met
_AGAIN = 0.2  # seconds between two attempts to claim what a run has that will be told to end
CORES = "SDTUNE_CORES"
"""Environment variable: cores of this host that the run was given, such as ``0-13``; empty: all. env.sh sets it."""


def claim_cores(job: Job) -> None:
    """Claim the cores of this host for this run, so that no other run uses them unknown; its first rank here does.

    Ranks that were started without ``launch.sh`` claim nothing, and where Slurm gives the cores, it keeps them apart.
    Of two runs that begin at once on several hosts, and have each got some, one waits here until the other was told.

    Raises:
        HostBusy: another run has them.
        BadInput: Slurm has bound this rank to fewer cores than it has threads.
    """
    if binding.started_by_slurm():
        binding.check_cores(variables.number("OMP_NUM_THREADS", 1), physical_cores(os.sched_getaffinity(0)))
        return
    attempt = Attempt.of(os.environ)
    if not attempt.token or variables.first(variables.LOCAL_RANK, 0) != 0:
        return
    cores = variables.numbers(CORES) or host_claims.cores_of_parent()
    if begins := host_claims.begin(attempt.digest):
        _BEGINS.append(begins)
    while True:
        try:
            _CLAIMS.extend(host_claims.claim_cores(job.run_dir, cores, attempt.digest))
        except host_claims.CoresTaken as taken:
            if taken.begins:
                time.sleep(_AGAIN)
                continue
            raise HostBusy(
                f"{platform.node()}{HostBusy.USED_BY}{taken}; wait for its end, queue this run with "
                f"-e training_wait_for_hosts=true, or give both cores of their own with launch_config_cores"
            ) from None
        else:
            return


def all_have_met() -> None:
    """Every host of this run is its own: who wants one of them is told so from now on."""
    while _BEGINS:
        _BEGINS.pop().close()


def _open_rendezvous(host: str, port: int, ranks: int, timeout: timedelta) -> TCPStore:
    try:
        return TCPStore(host, port, ranks, is_master=True, timeout=timeout, wait_for_workers=False)
    except distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error) and "address already in use" not in str(error).lower():
            raise
        by = host_claims.listener(port)
        raise PortTaken(
            f"port {port} on {platform.node()}, where the ranks meet, is taken"
            f"{f' by a program of user {by}' if by else ''}; start again, which takes another port, "
            f"or set launch_config_master_port to a free one"
        ) from None


def _find_rendezvous(host: str, port: int, mine: dict[str, object], timeout: timedelta) -> TCPStore:
    store = TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    theirs = json.loads(store.get(_IDENTITY))
    if theirs != mine:
        raise BadInput(
            f"port {port} on {host} belongs to run {theirs['run']} (attempt {theirs['attempt']}), "
            f"not to this one, run {mine['run']} (attempt {mine['attempt']}); start it again with a port of its own"
        )
    return store


def join(run: str, backend: str, timeout: timedelta) -> None:
    """Create the process group of this attempt, for any backend but mpi. Every rank calls this.

    Args:
        run: name of the run.
        backend: of torch.distributed.
        timeout: how long ranks wait for one that does not start or does not answer; torch's default is 30 minutes.

    Raises:
        BadInput: the port is taken, or belongs to another attempt.
    """
    attempt, me = Attempt.of(os.environ), get_cpu_distributed_information()
    host = os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    port = variables.number("MASTER_PORT", 29500)
    if "GLOO_SOCKET_IFNAME" not in os.environ:  # env.sh names none where Slurm chooses the hosts
        os.environ["GLOO_SOCKET_IFNAME"] = interface_towards(host)
    mine: dict[str, object] = {"run": run, "attempt": attempt.number, "token": attempt.digest}
    if me.rank == 0:
        store = _open_rendezvous(host, port, me.world_size, timeout)
        store.set(_IDENTITY, json.dumps(mine))
    else:
        store = _find_rendezvous(host, port, mine, timeout)
    distributed.init_process_group(
        backend,
        store=PrefixStore(attempt.token or run, store),
        rank=me.rank,
        world_size=me.world_size,
        timeout=timeout,
    )
