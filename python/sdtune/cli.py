"""What all entry points share: defaults for the libraries, and what happens to an error.

An error that the user can correct becomes one line; any other becomes a traceback. A rank of a run also records its
error, see :mod:`sdtune.launch.rank_error`.
"""
# ruff: noqa: E402

from sdtune.host import environment

environment.isolate()  # first: what is imported below could come from another environment

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from sdtune.errors import BadInput, DrawingFailed, Stopped, TrainingFailed
from sdtune.files import follow_mode
from sdtune.launch import hydra, variables
from sdtune.launch.processes import raise_descriptor_limit
from sdtune.launch.rank_error import Reporter
from sdtune.settings import Job, training_job
from sdtune.settings.flags import errors_name_flags

# The libraries' remarks on what they load would hide our messages. A user who wants them sets these to "info"; of what
# is no level, each library would complain on every import.
for _name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
    if os.environ.get(_name) not in ("detail", "debug", "info", "warning", "error", "critical"):
        os.environ[_name] = "error"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Models are local folders: no library has to ask a hub, or to wait for one that the cluster cannot reach.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# No usage statistics: OpenVINO and NNCF send them when this package is found, and work without it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# one folder in the run user's home, not one for each library
os.environ.setdefault(
    "MPLCONFIGDIR", str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sdtune" / "matplotlib")
)
_ONECCL_BINDINGS = "oneccl_bindings_for_pytorch"


def run(main: Callable[[], None], *, preload: bool = False) -> None:
    """Call ``main``, and turn what it raises into a message and an exit code.

    Args:
        main: the program.
        preload: whether the program may run with LD_PRELOAD, as ranks do; else it is started again without.

    Exit codes: 0, 2 for bad input, 1 for a failure, 3 when it was stopped on request. On SIGUSR1 the process writes its
    stack: to the rank's agent if it has one, else to standard error.
    """
    if not preload:
        environment.leave_preload()
    raise_descriptor_limit()
    reporter = Reporter()
    faulthandler.register(signal.SIGUSR1, file=2 if reporter.pipe is None else reporter.pipe, all_threads=False)
    try:
        main()
    except (BadInput, TrainingFailed, DrawingFailed) as error:
        reporter.report(error)
        # under mpirun every rank finds the same mistake in the job: one line for each host is enough
        one_of_several = reporter.rank is not None and os.environ.get("MPI_LOCALRANKID", "0") != "0"
        if not isinstance(error, BadInput) or not one_of_several:
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2 if isinstance(error, BadInput) else 1
    except Stopped as stopped:
        print(stopped, flush=True)
        code = 3
        _leave(reporter, code)
    except Exception as error:  # noqa: BLE001 - shown in full, and the process ends
        reporter.report(error)
        traceback.print_exc()
        code = 1
    else:
        _leave(reporter, 0)
        if _ONECCL_BINDINGS not in sys.modules:
            return
        # Their thread releases the last tensor while Python finalizes, and aborts the process then.
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    # At once, without any clean-up: Hydra does not end the other ranks when one leaves, but closing this rank's
    # connections ends the collective operation in which they wait.
    os._exit(code)


def _leave(reporter: Reporter, code: int) -> None:
    """Tell who watches this rank that its end is none to worry about."""
    reporter.leave(code)
    hydra.finalize()


def hide_modules(*names: str) -> None:
    """Let modules count as not installed, unless they are imported already."""
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def hide_never_used() -> None:
    """Hide what the libraries would import, and training never uses: almost a second and 80 MB on every rank.

    Text generation in transformers and a few noise schedules in diffusers import scikit-learn and SciPy; Accelerate and
    httpx import Rich and Click for output on terminals.
    """
    hide_modules("scipy", "sklearn", "rich", "click")


def hide_unused(jobs: Sequence[Job]) -> None:
    """Hide what the libraries would import, and none of these jobs uses."""
    if all(job.method == "textual_inversion" for job in jobs):
        hide_modules("peft")  # diffusers and transformers import it where it is installed, which takes half a second


def _check(job: Job) -> None:
    """Check a job and its inputs; print the warnings."""
    from sdtune.training.checks import check_inputs

    for warning in check_inputs(job):
        print(f"warning: {warning}", flush=True)
    print(f"the job {job.run_name} can run")


def train(description: str, method: str) -> None:
    """What a training program does: parse the command line, then check or train.

    Args:
        description: of the program, for ``--help``.
        method: that its flags are for; a job file says itself which method it is for.
    """
    job, flags = training_job(None, description, method)
    hide_unused([job])
    variables.check_rank()
    if variables.first(variables.RANK, 0) == 0:  # one of the ranks is enough
        for warning in flags.passed_over:
            print(f"warning: {warning}", flush=True)
    follow_mode(Path(job.run_dir))
    with contextlib.nullcontext() if flags.job else errors_name_flags(method):
        if flags.check:
            _check(job)
            return
        from sdtune.training import trainer  # after the flags: importing torch takes seconds

        trainer.train(job)
