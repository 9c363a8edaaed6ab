"""Starting a supervisor, or a drawing, that outlives whoever starts it."""

import getpass
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from sdtune.errors import BadInput
from standalone import run_state


def _manager_lingers(user: str) -> bool:
    """Whether systemd keeps this user's processes when he logs out, and can be reached."""
    bus = Path(f"/run/user/{os.getuid()}/bus")
    return Path(f"/var/lib/systemd/linger/{user}").exists() and bus.exists()


def _outliving(command: list[str], unit: str, folder: Path) -> list[str]:
    """A unit of the user's own systemd where that outlives him; else the command, for a session of its own."""
    if not _manager_lingers(getpass.getuser()):
        return command
    options = ["--collect", "--quiet", f"--unit={unit}", f"--working-directory={folder}"]
    return ["systemd-run", "--user", *options, "--", *command]


def _spawn(command: list[str], unit: str, run: Path, log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            _outliving(command, unit, run),
            cwd=run,
            env={**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def start(run: Path, arguments: list[str], *, seconds: float = 20) -> str:
    """Start a supervisor in the background, unless one is at work, and wait until it holds the run.

    Returns:
        ``started``, or ``attached`` when the run was going on already.

    Raises:
        BadInput: it does not start, or the run was started by hand; says what the supervisor said.
    """
    if run_state.is_locked(run / run_state.SUPERVISOR_LOCK):
        return "attached"
    if run_state.is_locked(run / run_state.LAUNCH_LOCK):
        raise BadInput(f"{run}: this run is going on already, started by hand; wait for it, or stop its mpirun")
    log, began = run / "logs" / "supervisor.log", time.time()
    supervise = [sys.executable, "-P", "-m", "sdtune.launch", "run", str(run), *arguments]
    process = _spawn(supervise, f"sdtune-{run.name}", run, log)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = run_state.read_state(run)
        if state.get("started", 0) >= began:
            return "started"
        if process.poll() is not None:
            if run_state.is_locked(run / run_state.SUPERVISOR_LOCK):  # another one was faster, or systemd-run is done
                return "started" if run_state.read_state(run).get("started", 0) >= began else "attached"
            if process.returncode:
                break
        time.sleep(0.05)
    said = log.read_text(encoding="utf-8", errors="replace").strip() or "it said nothing"
    raise BadInput(f"{run}: the supervisor does not start: {said[-800:]}")


def start_drawing(run: Path, command: list[str], *, seconds: float = 60) -> None:
    """Start what draws a run's pictures, and wait until it has looked at all that it needs.

    Raises:
        BadInput: it does not start; says what it said.
    """
    if run_state.is_locked(run / run_state.DRAWING_LOCK):
        raise BadInput(f"pictures of {run} are being drawn on this host already; wait for them, or stop that process")
    log, began = run / run_state.DRAWING_LOG, time.time()
    process = _spawn(command, f"sdtune-drawing-{run.name}", run, log)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if run_state.drawing(run)["state"].get("began", 0) >= began:
            return
        if process.poll():
            break
        time.sleep(0.05)
    said = log.read_text(encoding="utf-8", errors="replace").strip() or "it said nothing"
    raise BadInput(said[-800:].removeprefix("error: "))


def report(run: Path, arguments: list[str]) -> None:
    """Start, and print what came of it as JSON."""
    print(json.dumps({"run": str(run), "did": start(run, arguments)}))
