"""How ranks become one run: what the launcher started, what Accelerate's config says, and what every rank found."""

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
from sdtune.launch.run_folder import Run
from sdtune.settings import Job
from sdtune.training.backends import check_backend, load_backend
from sdtune.training.checkpoint import identity
from sdtune.training.checks import check_job, check_world_size, launched_world_size

T = TypeVar("T")

CONFIG_VARIABLE = "ACCELERATE_CONFIG_FILE"
"""Names this host's Accelerate config; env.sh in a run folder sets it."""


def read_accelerate_config(path: str | Path) -> None:
    """Take from Accelerate's config what its own launcher would: where the ranks meet, and that they are CPUs.

    Under mpirun every rank is a process already, so the launcher itself would only be a second one around each.

    Raises:
        BadInput: it cannot be read, is not meant for CPUs, or contradicts the launch.
    """
    try:
        config = load_config_from_file(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"the Accelerate config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not config.use_cpu:
        raise BadInput(f"the Accelerate config {path} does not say use_cpu: true; this trains on CPUs")
    launched = launched_world_size()
    # its supervisor may go on without a host that was lost, and tells the ranks so
    if launched not in (config.num_processes, int(os.environ.get("SDTUNE_WORLD_SIZE") or 0)):
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
    """Join the other ranks.

    Raises:
        BadInput: the backend is not in this torch, or the ranks are not as many as the job or Accelerate's config says.
    """
    check_world_size(job)
    if path := os.environ.get(CONFIG_VARIABLE):
        read_accelerate_config(path)
    if launched_world_size() > 1:
        load_backend(job.training.backend)
        # torch's own is half an hour: so long would ranks wait for one that never comes, or never answers
        timeout = timedelta(seconds=job.training.collective_timeout)
        PartialState(cpu=True, backend=job.training.backend, timeout=timeout)
        check_backend(job.training.backend)
    trackers = None if job.training.report_to == "none" else job.training.report_to
    accelerator = Accelerator(cpu=True, log_with=trackers, project_dir=job.run_dir)
    # without cpu=True, or its launcher's variables, Accelerate would start N separate runs; that must never pass
    asked = job.training.world_size
    if asked is not None and accelerator.num_processes != asked:
        raise BadInput(f"the job asks for {asked} ranks but Accelerate joined {accelerator.num_processes}")
    return accelerator


def check_together(job: Job, rank: int, world_size: int) -> dict[str, Any]:
    """Look at the job on every rank, and let all ranks know what any of them found, so that none is left waiting.

    Returns:
        :func:`sdtune.training.checkpoint.identity` of the run, which is the same on every rank.

    Raises:
        BadInput: on every rank, with one line for each host where something is wrong or differs from rank 0's.
    """
    who: dict[str, Any] = {}
    problem = None
    try:
        check_job(job)
        if rank == 0:
            Run(job.run_dir).prove_writable()
        who = identity(job, world_size)
    except BadInput as error:
        problem = str(error)
    found = gather_object([(platform.node(), problem, who)])
    problems: dict[tuple[str, str], None] = {}  # each once, in the order of the ranks
    first_host, _, first = found[0]
    for host, its_problem, its_who in found:
        if its_problem is not None:
            problems[host, its_problem] = None
        elif first and its_who != first:
            key = next(k for k in first if its_who[k] != first[k])
            problems[host, f"its {key} differ from those of {first_host}; give all hosts the same"] = None
    if problems:
        several = len({host for host, _, _ in found}) > 1
        raise BadInput("; ".join(f"{host}: {p}" if several else p for host, p in problems))
    return who


def of_first_rank(rank: int, ask: Callable[[], T]) -> T:
    """What ``ask`` returns on rank 0, whose disk is not the others', on every rank. They must all call this.

    Raises:
        BadInput: on every rank, when it does on rank 0.
    """
    found: list[tuple[T | None, str | None]] = []
    if rank == 0:
        try:
            found.append((ask(), None))
        except BadInput as error:
            found.append((None, str(error)))
    answer, problem = gather_object(found)[0]
    if problem is not None:
        raise BadInput(problem)
    return cast(T, answer)
