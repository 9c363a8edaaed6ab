"""The hosts that Slurm has given to a batch job, as seen from inside the job."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdtune.errors import BadInput
from sdtune.host.interface import source_address
from sdtune.launch import variables

SECONDS = 60.0
"""For a command of Slurm to answer; a busy slurmctld takes its time."""
# srun would read these as options that imply --exact, and then give the step a part of the node: by default a step has
# all processors that its job has on the node (srun(1), --exact).
_SIZES = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_EXACT", "SLURM_THREADS_PER_CORE")
_STEP = (
    *("env", *(f"--unset={name}" for name in _SIZES)),
    *("srun", "--nodes=1", "--ntasks=1", "--overlap", "--mem=0", "--cpu-bind=none", "--export=ALL"),
)
_NODE = re.compile(r"\bNodeName=(\S+).*?\bNodeAddr=(\S+)")


def ask_slurm(
    command: Sequence[str], *, remedy: str, seconds: float = SECONDS, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm, whatever its exit code is.

    Raises:
        BadInput: it is missing, or does not end in time.
    """
    try:
        return subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"{command[0]} does not answer ({error}); {remedy}") from None


def scontrol(*arguments: str) -> str:
    """What ``scontrol`` prints.

    Raises:
        BadInput: it fails, with what it says.
    """
    done = ask_slurm(["scontrol", *arguments], remedy="ask the administrators")
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"code {done.returncode}"
        raise BadInput(f"scontrol {' '.join(arguments)}: {said}")
    return done.stdout


def addresses(text: str) -> dict[str, str]:
    """{name: address} of the nodes that ``scontrol -o show node`` lists."""
    return {found.group(1): found.group(2) for found in map(_NODE.search, text.splitlines()) if found}


def step_on(node: str, command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` on a node of this process's job, with all of its cores."""
    return [*_STEP, f"--nodelist={node}", *command]


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The batch job that this process belongs to."""

    job: str
    """Its number."""
    attempt: int
    """How often Slurm has started it, this time included."""
    hosts: dict[str, str]
    """Name and address of each host, in the order of ranks; the address of the first, this one, is as others see it."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Allocation":
        """Read it from environment variables, and ask Slurm for the rest.

        Raises:
            BadInput: this process belongs to no job.
        """
        job, listed = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_JOB_NODELIST", "")
        if not job or not listed:
            raise BadInput("this run is started by Slurm; type sbatch job.sbatch in its folder")
        names = scontrol("show", "hostnames", listed).split()
        known = addresses(scontrol("-o", "show", "node", listed))
        hosts = {name: known.get(name, name) for name in names}
        hosts[names[0]] = source_address(hosts[names[1]]) if len(names) > 1 else "127.0.0.1"
        return cls(job=job, attempt=variables.number("SLURM_RESTART_COUNT", 0, environment) + 1, hosts=hosts)

    def requeue(self) -> None:
        """Let Slurm end this job now and start it again, when it has hosts for it.

        Raises:
            BadInput: Slurm does not do it.
        """
        scontrol("requeue", self.job)
