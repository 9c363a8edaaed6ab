"""System functions of the lab: commands, and processes that are identified by a marker in their environment."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "SDTUNE_LAB"
# The environment of processes on a host. Nothing is inherited: the caller's paths and settings are not valid there.
PLAIN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class LabError(Exception):
    """A problem and the next command to type, in one line."""


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command and return its standard output."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise LabError(f"{command[0]} is missing on this machine; type: make lab-tools") from None
    if check and result.returncode:
        raise LabError(f"{' '.join(map(str, command))}: {result.stderr.strip() or result.returncode}")
    return result.stdout


def marked(mark: str) -> Iterator[int]:
    """Processes with this marker, and those that inherited their environment.

    The Linux kernel keeps the marker, so it is found after a crash too. A stale PID file could name another process.
    """
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:  # ended meanwhile
                continue


def kill(mark: str, *, seconds: float = 30) -> None:
    """Kill all processes with this marker and wait until they are gone. With PID 1, all processes of a host end."""
    deadline = time.monotonic() + seconds
    while pids := list(marked(mark)):
        if time.monotonic() > deadline:
            raise LabError(f"processes {pids} do not end; look at them with ps, then type the same again")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def first_process(mark: str) -> int | None:
    """PID, in the namespace of this machine, of the process that is PID 1 in its own namespace."""
    for pid in marked(mark):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
        if len(numbers) > 1 and numbers[-1] == "1":
            return pid
    return None
