"""Distributed setup: from the processes that a launcher started to one run, and what ranks tell each other."""

import os
import platform
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from accelerate import Accelerator, PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import gather_object

from sdtune.errors import BadInput
from sdtune.launch import variables
from sdtune.launch.run_folder import Run
from sdtune.settings import Job
from sdtune.training.backends import check_backend, load_backend
from sdtune.training.checks import check_job, check_world_size, launched_world_size
from sdtune.training.identity import run_identity
from sdtune.training.joining import all_have_met, claim_cores, join

T = TypeVar("T")

CONFIG_VARIABLE = "ACCELERATE_CONFIG_FILE"
"""Environment variable with the path of this host's Accelerate config; env.sh in a run folder sets it."""


def read_accelerate_config(path: str | Path) -> None:
    """Set the environment variables that Accelerate's own launcher would set from its config.

    They are the address and port of rank 0, and that training is on CPUs. Accelerate's launcher is not used, because
    mpirun has started one process per rank already.

    Raises:
        BadInput: the config cannot be read, is not meant for CPUs, or contradicts the launch.
    """
    try:
        config = load_config_from_file(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"the Accelerate config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not config.use_cpu:
        raise BadInput(f"the Accelerate config {path} does not say use_cpu: true; this trains on CPUs")
    launched = launched_world_size()
    # a supervisor that goes on without a lost host tells its ranks their number in SDTUNE_WORLD_SIZE
    if launched not in (config.num_processes, variables.number("SDTUNE_WORLD_SIZE", 0)):
        raise BadInput(
            f"the Accelerate config {path} says num_processes: {config.num_processes}, but {launched} ranks were "
            f"started; run train.yml again, which writes it, or start launch.sh in the run folder"
        )
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if launched > 1:
        for variable, value in (
            ("MASTER_ADDR", config.main_process_ip),
            ("MASTER_PORT", config.main_process_port),
        ):
            if value is None:
                continue
            if os.environ.setdefault(variable, str(value)) != str(value):
                raise BadInput(
                    f"{variable} is {os.environ[variable]}, but the Accelerate config {path} says {value}; "
                    f"unset it, or change the config"
                )


def start_accelerator(job: Job) -> Accelerator:
    """Set up the process group with all other ranks.

    Raises:
        BadInput: the backend is not in this torch, the number of ranks differs from the job or Accelerate's config, or
            the other ranks are of another run or use hosts of one.
    """
    check_world_size(job)
    claim_cores(job)
    if path := os.environ.get(CONFIG_VARIABLE):
        read_accelerate_config(path)
    if launched_world_size() > 1:
        load_backend(job.training.backend)
        if job.training.backend != "mpi":
            join(job.run_name, job.training.backend, timedelta(seconds=job.training.collective_timeout))
        # it takes a process group that is there; that of mpi it creates itself
        PartialState(cpu=True, backend=job.training.backend)
        check_backend(job.training.backend)
    all_have_met()
    trackers = None if job.training.report_to == "none" else job.training.report_to
    accelerator = Accelerator(cpu=True, log_with=trackers, project_dir=job.run_dir)
    # without cpu=True or its launcher's variables, Accelerate silently starts N independent runs
    asked = job.training.world_size
    if asked is not None and accelerator.num_processes != asked:
        raise BadInput(f"the job asks for {asked} ranks but the process group has {accelerator.num_processes}")
    return accelerator


def check_on_all_ranks(job: Job, rank: int, world_size: int) -> dict[str, Any]:
    """Check the job on every rank, and gather the problems, so that all ranks raise the same error together.

    Returns:
        The run's identity, see :func:`sdtune.training.identity.run_identity`; the same on every rank.

    Raises:
        BadInput: on every rank, with one line for each host that has a problem or whose inputs differ from rank 0's.
    """
    identity: dict[str, Any] = {}
    problem = None
    try:
        check_job(job)
        if rank == 0:
            Run(job.run_dir).prove_writable()
        identity = run_identity(job, world_size)
    except BadInput as error:
        problem = str(error)
    gathered = gather_object([(platform.node(), problem, identity)])
    problems: dict[tuple[str, str], None] = {}  # without duplicates, in the order of the ranks
    first_host, _, expected = gathered[0]
    for host, its_problem, its_identity in gathered:
        if its_problem is not None:
            problems[host, its_problem] = None
        elif expected and its_identity != expected:
            key = next(k for k in expected if its_identity[k] != expected[k])
            problems[host, f"its {key} differ from those of {first_host}; give all hosts the same"] = None
    if problems:
        several = len({host for host, _, _ in gathered}) > 1
        raise BadInput("; ".join(f"{host}: {p}" if several else p for host, p in problems))
    return identity


def broadcast_from_rank_0(rank: int, function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 only, and return its result on every rank. Every rank calls this.

    Raises:
        BadInput: on every rank, if ``function`` raises it.
    """
    gathered: list[tuple[T | None, str | None]] = []
    if rank == 0:
        try:
            gathered.append((function(), None))
        except BadInput as error:
            gathered.append((None, str(error)))
    result, problem = gather_object(gathered)[0]
    if problem is not None:
        raise BadInput(problem)
    return cast(T, result)
