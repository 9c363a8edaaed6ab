"""What the lab needs of the system: commands, and processes that are known by a mark in their environment."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "SDTUNE_LAB"
# The environment of what runs on a host: nothing of the caller's, whose paths and settings mean nothing there.
PLAIN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class LabError(Exception):
    """Says in one line what is wrong and what to type next."""


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command, return what it printed."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise LabError(f"{command[0]} is missing on this machine; type: make lab-tools") from None
    if check and result.returncode:
        raise LabError(f"{' '.join(map(str, command))}: {result.stderr.strip() or result.returncode}")
    return result.stdout


def marked(mark: str) -> Iterator[int]:
    """Processes started with this mark, and those that they handed their environment to.

    The kernel keeps the mark, so it is found after a crash too, and never names a stranger as a stale pid file may.
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
    """Kill all processes with this mark and wait until they are gone. PID 1 of a host takes all others along."""
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
    """PID, as this machine sees it, of the process that is PID 1 in its own namespace."""
    for pid in marked(mark):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
        if len(numbers) > 1 and numbers[-1] == "1":
            return pid
    return None
