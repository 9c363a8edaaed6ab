"""The guard of one rank: tells the supervisor that it lives and when it ended, and ends it when the supervisor is gone.

``rank.sh`` starts one beside each rank, in a session of its own, when a supervisor started the job. Both ends send a
line now and then; whoever hears nothing for ``timeout`` seconds gives the other up. So a host that was cut off ends its
ranks by itself, which nobody could tell it to do. A guard costs a few megabytes and no time.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

WHERE = "SDTUNE_SUPERVISOR"
"""``address:port`` of the supervisor, ``seconds`` of its timeout, and the token that tells guards from strangers."""
RUN = "SDTUNE_RUN"
"""The run folder, in the environment of every process that the supervisor starts: what :func:`sweep` goes by."""


def _status(pid: int) -> tuple[str, int]:
    """State letter and parent of a process; X when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return "X", 0
    return fields[0], int(fields[1])


def _launchers(pid: int) -> list[int]:
    """Hydra's processes above a rank on this host: the proxy that started it, and what started that."""
    found = []
    while pid > 1:
        try:
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except OSError:
            break
        if not name.startswith("hydra"):
            break
        found.append(pid)
        pid = _status(pid)[1]
    return found


def marked(run: str) -> list[int]:
    """Processes of this host with the run's mark in their environment, which the kernel keeps."""
    mark, found = f"{RUN}={run}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # ended meanwhile, or another user's
                continue
    return found


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def sweep(run: str, *, seconds: float = 10) -> int:
    """Kill what a run has left on this host, and wait until it is gone.

    Returns:
        How many processes there were.

    Raises:
        TimeoutError: some do not end.
    """
    first, end = marked(run), time.monotonic() + seconds
    left = first
    while left:
        if time.monotonic() > end:
            raise TimeoutError(f"processes {left} do not end")
        _signal(left, signal.SIGKILL)
        time.sleep(0.05)
        left = [pid for pid in marked(run) if _status(pid)[0] not in "XZ"]
    return len(first)


class Guard:
    """One connection, one rank."""

    def __init__(self, rank: int, pid: int, launcher: int, where: Mapping[str, str], log: Path) -> None:
        self.rank, self.pid, self.log = rank, pid, log
        self.timeout = float(where["timeout"])
        self.launchers = _launchers(launcher)
        self.rank_end = os.pidfd_open(pid)
        address, _, port = where["address"].rpartition(":")
        self.connection = socket.create_connection((address, int(port)), timeout=self.timeout)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.say(hello=where["token"], rank=rank, pid=pid, node=os.uname().nodename)

    def say(self, **what: object) -> None:
        """Send one line; a connection that takes none is as good as closed."""
        self.connection.sendall(json.dumps(what).encode() + b"\n")

    def end(self, why: str) -> None:
        """End the rank and what started it here; the rank's log says why."""
        try:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"guard: {why}; this rank is ended\n")
        except OSError as error:  # a full disk must not keep a rank alive
            print(f"{self.log}: {error}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.rank_end, signal.SIGKILL)
        _signal(self.launchers, signal.SIGKILL)

    def watch(self) -> None:
        """Until the rank ends."""
        heard, every = time.monotonic(), min(2.0, self.timeout / 5)
        due, pending, connection = time.monotonic(), b"", self.connection.fileno()
        while True:
            readable, _, _ = select.select([connection, self.rank_end], [], [], max(0.0, due - time.monotonic()))
            try:
                if self.rank_end in readable:
                    if connection in readable and not self.connection.recv(1, socket.MSG_PEEK):
                        self.end("the supervisor is gone")  # first, and so the rank's launcher
                        return
                    self.say(gone=True)
                    return
                if connection in readable:
                    data = self.connection.recv(4096)
                    if not data:
                        self.end("the supervisor is gone")
                        return
                    heard, pending = time.monotonic(), pending + data
                    *orders, pending = pending.split(b"\n")
                    if b"end" in orders:
                        self.end("the supervisor ends the job")
                    elif b"dump" in orders:  # where does it hang? faulthandler answers
                        _signal([self.pid], signal.SIGUSR1)
                if time.monotonic() >= due:
                    due = time.monotonic() + every
                    self.say(beat=_status(self.pid)[0])
            except ConnectionError:  # a killed supervisor that had a line unread resets the connection
                self.end("the supervisor is gone")
                return
            except OSError as error:
                self.end(f"the connection to the supervisor broke ({error.strerror or error})")
                return
            if time.monotonic() - heard > self.timeout:
                self.end(f"nothing was heard of the supervisor for {self.timeout:.0f} s")
                return


def main(pid: int, launcher: int) -> None:
    """Guard process ``pid``, which ``launcher`` started; the supervisor is named by the environment."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(3, 1024)  # Hydra's pipes: it waits for their end
    rank = int(os.environ["PMI_RANK"])
    address, timeout, token = os.environ[WHERE].split(",")
    where = {"address": address, "timeout": timeout, "token": token}
    log = Path("logs") / f"rank-{rank}.log"
    try:
        guard = Guard(rank, pid, launcher, where, log)
    except OSError:
        _signal([pid], signal.SIGKILL)  # unguarded it might outlive the job
        raise
    guard.watch()
