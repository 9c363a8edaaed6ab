"""A process beside a call of ansible-playbook that renews a lock of a host until the call ends.

It renews over Ansible's own connection, so a jump host or a sudo password is no matter to it, and no connection has to
stay open. It ends with the call, however that ends, and releases the lock then. When it ends before, the lock is lost,
and the callback held_lock ends the call before its next task.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ansible.errors import AnsibleError

LOOK_SECONDS = 1.0  # between two looks at the call
RENEWALS = 4  # in the time that a lock is held without one


def started(pid: int) -> str:
    """When a process of this machine started; empty if there is none. It tells apart two processes of one number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie does nothing any more


def is_alive(pid: int, since: str) -> bool:
    """Whether a process that started then still runs."""
    if not Path("/proc/self/stat").exists():  # not Linux
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return started(pid) == since != ""


def clock() -> float:
    """Seconds that also pass while this machine is suspended, where it can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def keep(call: tuple[int, str], renew: Callable[[], str], seconds: float) -> str:
    """Renew the lock until the call ends.

    Args:
        call: process of ansible-playbook, and when it started.
        renew: renews it once; why the lock is another's now, or nothing.
        seconds: that the lock is held after each renewal.

    Returns:
        Why the lock is lost; nothing if the call has ended.
    """
    renewed = asked = clock()
    while True:
        while (waited := clock() - asked) < seconds / RENEWALS:
            if not is_alive(*call):
                return ""
            time.sleep(min(LOOK_SECONDS, max(0.01, seconds / RENEWALS - waited)))
        asked = clock()
        try:
            if lost := renew():
                return lost
            renewed = asked
        except AnsibleError as error:
            if clock() - renewed > seconds:
                return f"it does not answer for {seconds:g} s ({str(error).splitlines()[-1]})"


def start(work: Callable[[], None]) -> int:
    """Do some work in a process of its own session, which outlives this worker of Ansible; its number.

    No signal for the worker, such as of Ctrl-C, is for it.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def end(pid: int, since: str) -> None:
    """End such a process."""
    if is_alive(pid, since):
        os.kill(pid, signal.SIGTERM)
