"""Start a supervisor, or the generation of images, in the background, so that it outlives the caller's session."""

import getpass
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from sdtune.errors import BadInput
from sdtune.launch import staging, submit
from standalone import host_claims, run_state


def _manager_lingers(user: str) -> bool:
    """Whether systemd keeps this user's processes after logout, and can be reached."""
    bus = Path(f"/run/user/{os.getuid()}/bus")
    return Path(f"/var/lib/systemd/linger/{user}").exists() and bus.exists()


def _outliving(command: list[str], unit: str, folder: Path) -> list[str]:
    """The command as a unit of the user's systemd, where that outlives the session; else the command itself."""
    if not _manager_lingers(getpass.getuser()):
        return command
    options = ["--collect", "--quiet", f"--unit={unit}", f"--working-directory={folder}"]
    return ["systemd-run", "--user", *options, "--", *command]


def spawn(command: list[str], name: str, run: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a program that outlives this session, with its output in ``log``.

    systemd knows it by ``name`` and the run's folder, since one user may have runs of one name in several work_dirs.
    """
    log.parent.mkdir(exist_ok=True)
    unit = f"{name}-{host_claims.digest_of(run)}"
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


def start(run: Path, arguments: list[str], call: str | None = None, hosts: str = "", *, seconds: float = 90) -> str:
    """Start a supervisor in the background, unless there is one, and wait until it has written its first state.

    Args:
        run: the run folder.
        arguments: of launch.sh.
        call: name under which launch files are staged, which are put in place first; None: those of before stay.
        hosts: those that the run gets, this one first; empty: those of its launch files.
        seconds: to wait.

    Returns:
        ``started``, or ``attached`` when the run was going on already, or another call was faster.

    Raises:
        BadInput: it does not start, or the run is going on without a supervisor; with the end of the supervisor's log.
    """
    if submit.is_for_slurm(run, call):
        return submit.submit(run, arguments, call)
    if run_state.is_locked(run / run_state.SUPERVISOR_LOCK):
        return "attached"
    if run_state.is_locked(run / run_state.LAUNCH_LOCK):
        raise BadInput(f"{run}: this run is going on already, without a supervisor; wait for it, or stop its mpirun")
    staging.check(run, call, arguments)
    call, log, began = call or secrets.token_hex(6), run / "logs" / "supervisor.log", time.time()
    supervise = [sys.executable, "-P", "-m", "sdtune.launch", "run", "--call", call, "--hosts", hosts]
    supervise += [str(run), *arguments]
    process = spawn(supervise, f"sdtune-{run.name}", run, log)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = run_state.read_state(run)
        if state.get("started", 0) >= began:
            return "started" if state.get("call") == call else "attached"
        if process.poll():  # 0 is systemd-run, which has done its part
            if run_state.is_locked(run / run_state.SUPERVISOR_LOCK):  # another call was faster
                return "attached"
            end = min(end, time.monotonic() + 2)  # until that one holds the lock
        time.sleep(0.05)
    output = log.read_text(encoding="utf-8", errors="replace").strip() or "it printed nothing"
    refusal = output.splitlines()[-1]
    if refusal.startswith("error: "):
        raise BadInput(refusal.removeprefix("error: "))
    raise BadInput(f"{run}: the supervisor does not start: {output[-800:]}")


def start_drawing(run: Path, command: list[str], *, seconds: float = 300) -> None:
    """Start the generation of a run's pictures, and wait until it has checked all that it needs.

    Raises:
        BadInput: it does not start; with the end of its log.
    """
    if run_state.is_batch(run):
        submit.submit_drawing(run)
        return
    if run_state.is_locked(run / run_state.DRAWING_LOCK):
        raise BadInput(f"pictures of {run} are being drawn on this host already; wait for them, or stop that process")
    log, began = run / run_state.DRAWING_LOG, time.time()
    process = spawn(command, f"sdtune-drawing-{run.name}", run, log)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if run_state.drawing(run)["state"].get("began", 0) >= began:
            return
        if process.poll():
            break
        time.sleep(0.05)
    else:
        raise BadInput(f"{run}: the drawing has not begun after {seconds:.0f} s; it goes on, with its log in {log}")
    output = log.read_text(encoding="utf-8", errors="replace").strip() or "it printed nothing"
    raise BadInput(output[-800:].removeprefix("error: "))


def report(run: Path, arguments: list[str], call: str | None, hosts: str) -> None:
    """Start the supervisor, and print what was done, as JSON."""
    print(json.dumps({"run": str(run), "did": start(run, arguments, call, hosts)}))
