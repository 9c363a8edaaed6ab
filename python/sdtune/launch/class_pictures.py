"""Class pictures of prior preservation, drawn by the supervisor before the first attempt, on all hosts of the run.

Where ``train.yml`` knows the hosts, it draws them before it starts the run. Of a batch job, and of a run that waits for
free hosts, only the supervisor knows them. What is drawn stays on the hosts, so an interrupted drawing loses nothing.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput, DrawingFailed
from standalone import run_state

PROGRAM = Path(__file__).parents[2] / "generate_images.py"
LOG = "logs/class-pictures.log"
_ENDING = 10.0  # seconds for the workers to end


def missing(run: Path) -> tuple[int, Path]:
    """How many batches of the run's class pictures are missing, and the folder that holds the others.

    Raises:
        BadInput: they cannot be drawn.
    """
    command = [sys.executable, "-P", str(PROGRAM), "--class-pictures", "job.yaml", "--check"]
    done = subprocess.run(command, cwd=run, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(f"the class pictures cannot be drawn: {_last(done.stderr)}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return int(answer["missing"]), Path(answer["folder"])


def _last(text: str) -> str:
    """The last line that a program printed, without the word error."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it printed nothing"


def draw(
    run: Path,
    folder: Path,
    hosts: Sequence[str],
    interrupted: Callable[[], object],
    report: Callable[[str], None],
) -> bool:
    """Draw what is missing.

    Args:
        run: folder of the run.
        folder: that holds the pictures.
        hosts: arguments that name the other hosts.
        interrupted: is asked four times a second whether to end the drawing; what is drawn stays.
        report: is told what is being done, whenever that changes.

    Returns:
        Whether all are there; else it was interrupted.

    Raises:
        DrawingFailed: it ended before all were there, with its error message.
    """
    command = [sys.executable, "-P", str(PROGRAM), "--class-pictures", "job.yaml", *hosts]
    log, said, began = run / LOG, "", time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=run,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while process.poll() is None:
        drawn = run_state.drawing(folder)["state"]
        count = f", {drawn['pictures']} of {drawn['of']}" if drawn.get("began", 0) >= began else ""
        if (doing := f"draws the class pictures{count}") != said:
            report(said := doing)
        if interrupted():
            _end(process)
            return False
        time.sleep(0.25)
    if process.returncode:
        raise DrawingFailed(
            f"the class pictures were not drawn: {_last(log.read_text('utf-8', 'replace'))} (log: {LOG})"
        )
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the program end its workers, on other hosts too; then end what is left of it here."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_ENDING)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
