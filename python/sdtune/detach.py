"""Starting a supervisor that outlives whoever starts it."""

import getpass
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from sdtune import runstate
from sdtune.errors import BadInput


def _manager_lingers(user: str) -> bool:
    """Whether systemd keeps this user's processes when he logs out, and can be reached."""
    bus = Path(f"/run/user/{os.getuid()}/bus")
    return Path(f"/var/lib/systemd/linger/{user}").exists() and bus.exists()


def command_line(run: Path, arguments: list[str]) -> list[str]:
    """What starts the supervisor: a unit of the user's own systemd where that outlives him, else a session."""
    supervise = [sys.executable, str(Path(sys.argv[0]).resolve()), "run", str(run), *arguments]
    if not _manager_lingers(getpass.getuser()):
        return supervise
    unit = f"--unit=sdtune-{run.name}"
    return ["systemd-run", "--user", "--collect", "--quiet", unit, f"--working-directory={run}", "--", *supervise]


def start(run: Path, arguments: list[str], *, seconds: float = 20) -> str:
    """Start a supervisor in the background, unless one is at work, and wait until it holds the run.

    Returns:
        ``started``, or ``attached`` when the run was going on already.

    Raises:
        BadInput: it does not start, or the run was started by hand; says what the supervisor said.
    """
    if runstate.is_locked(run / runstate.SUPERVISOR_LOCK):
        return "attached"
    if runstate.is_locked(run / runstate.LAUNCH_LOCK):
        raise BadInput(f"{run}: this run is going on already, started by hand; wait for it, or stop its mpirun")
    (run / "logs").mkdir(exist_ok=True)
    log = run / "logs" / "supervisor.log"
    began = time.time()
    environment = {**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command_line(run, arguments),
            cwd=run,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = runstate.read_state(run)
        if state.get("started", 0) >= began:
            return "started"
        if process.poll() is not None:
            if runstate.is_locked(run / runstate.SUPERVISOR_LOCK):  # another one was faster, or systemd-run is done
                return "started" if runstate.read_state(run).get("started", 0) >= began else "attached"
            if process.returncode:
                break
        time.sleep(0.05)
    said = log.read_text(encoding="utf-8", errors="replace").strip() or "it said nothing"
    raise BadInput(f"{run}: the supervisor does not start: {said[-800:]}")


def report(run: Path, arguments: list[str]) -> None:
    """Start, and print what came of it as JSON."""
    print(json.dumps({"run": str(run), "did": start(run, arguments)}))
