"""Submit a run to Slurm, unless its job is in the queue already."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from sdtune.errors import BadInput
from sdtune.files import hold_lock, write_atomically
from sdtune.launch import staging
from sdtune.launch.allocation import ask_slurm
from standalone import launch_files, run_state

SCRIPT, DRAWING_SCRIPT = "job.sbatch", "draw.sbatch"
_SECONDS = 120.0  # for sbatch; a busy slurmctld takes its time


def is_for_slurm(run: Path, call: str | None) -> bool:
    """Whether Slurm starts the run, by the files that ``call`` has staged, or else those that are in place."""
    folder = launch_files.staged(run, call) if call else run
    return run_state.is_batch(folder if folder.is_dir() else run)


def submit(run: Path, arguments: list[str], call: str | None, after: str = "") -> str:
    """Submit the run.

    Args:
        run: the run folder, which the nodes see too.
        arguments: of launch.sh.
        call: name under which launch files are staged, which are put in place first; None: those of before stay.
        after: number of a job whose end it waits for; empty: of none.

    Returns:
        ``started``, or ``attached`` when its job is in the queue, or another call submits it at this moment.

    Raises:
        BadInput: Slurm does not take the job, with what it says.
    """
    with ExitStack() as stack:
        try:  # against another call on this login node; the job itself is found in the queue
            stack.enter_context(hold_lock(run / ".submit.lock", timeout=1))
        except BlockingIOError:
            return "attached"
        if run_state.queued_job(run):
            return "attached"
        staging.check(run, call, arguments)
        if call is not None and launch_files.staged(run, call).is_dir():
            launch_files.place(run, call)
        (run / "logs").mkdir(exist_ok=True)
        job = _sbatch(run, arguments, options=[f"--dependency=afterany:{after}"] if after else [])
        write_atomically(run / run_state.SUBMITTED, json.dumps({"job": job, "time": time.time()}) + "\n")
        return "started"


def newest_job(run: Path) -> str:
    """Number of the job that was submitted last; empty if there is none."""
    path = run / run_state.SUBMITTED
    return str(json.loads(path.read_text("utf-8"))["job"]) if path.exists() else ""


def submit_drawing(run: Path) -> None:
    """Submit the generation of a run's images.

    Raises:
        BadInput: it is in the queue already, or Slurm does not take the job.
    """
    if queued := run_state.queued_job(run, run_state.drawing_name(run)):
        raise BadInput(f"pictures of {run} are being drawn already, by job {queued['job']}; wait for it, or scancel it")
    for name in (run_state.DRAWING, run_state.DRAWING_LOG):
        (run / name).unlink(missing_ok=True)
    _sbatch(run, [], DRAWING_SCRIPT)


def _sbatch(run: Path, arguments: list[str], script: str = SCRIPT, options: Sequence[str] = ()) -> str:
    done = ask_slurm(
        ["sbatch", "--parsable", *options, str(run / script), *arguments],
        remedy="try it on the login node",
        seconds=_SECONDS,
        folder=run,
    )
    if done.returncode:
        said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines() if line]
        raise BadInput(f"Slurm does not take the job: {said[-1] if said else f'code {done.returncode}'}")
    return done.stdout.strip().partition(";")[0]
