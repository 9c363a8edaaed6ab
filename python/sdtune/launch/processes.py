"""Processes of this host: their state, signals to them, and ending all that belong to a run."""

import os
import resource
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from standalone import run_state

_DESCRIPTORS = 1 << 20  # the Linux kernel's own default for the hard limit; more makes programs slow that close all


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one, so that idle connections do not exhaust it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def state_and_parent(pid: int) -> tuple[str, int]:
    """State letter and parent of a process, as ``/proc/<pid>/stat`` has them; ``("X", 0)`` when it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return "X", 0
    return fields[0], int(fields[1])


def killed_for_memory(group: Path | None = None) -> int:
    """How many processes the Linux kernel has killed for want of memory: in this process's group, else on the host.

    Args:
        group: folder of the control group; that of this process by default.
    """
    if group is None:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        paths = {line.split(":", 2)[1]: line.split(":", 2)[2].lstrip("/") for line in lines}
        first = Path("/sys/fs/cgroup") / paths.get("", "")
        group = first if "memory" not in paths else Path("/sys/fs/cgroup/memory") / paths["memory"]
    for path in (group / "memory.events", group / "memory.oom_control", Path("/proc/vmstat")):
        try:
            counts = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        except OSError:
            continue
        for count in counts:
            if count[0] == "oom_kill":
                return int(count[1])
    return 0


def processes_of(run: str) -> list[int]:
    """PIDs on this host that have ``SDTUNE_RUN=<run>`` in their environment, except this process."""
    return [
        p.pid for p in run_state.scan_processes() if p.environment.get(run_state.RUN) == run and p.pid != os.getpid()
    ]


def send_signal(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def sweep(run: str, *, seconds: float = 10) -> int:
    """Kill the processes of a run on this host, and wait until they have ended.

    Args:
        run: absolute path of the run folder.
        seconds: how long to wait.

    Returns:
        How many processes there were.

    Raises:
        TimeoutError: some processes do not end.
    """
    found, end = processes_of(run), time.monotonic() + seconds
    left = found
    while left:
        if time.monotonic() > end:
            raise TimeoutError(f"processes {left} do not end")
        send_signal(left, signal.SIGKILL)
        time.sleep(0.05)
        left = [pid for pid in processes_of(run) if state_and_parent(pid)[0] not in "XZ"]
    return len(found)
