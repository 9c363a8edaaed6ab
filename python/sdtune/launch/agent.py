"""The agent of one rank: it reports to the supervisor, and ends its rank when the supervisor is gone.

``rank.sh`` starts one for each rank, in a session of its own, when a supervisor started the job. Agent and supervisor
send lines to each other every few seconds. The end that receives nothing for ``timeout`` seconds regards the other as
lost, so a host that was cut off ends its own ranks. An agent needs a few megabytes and almost no processor time.

Lines from the agent are JSON objects: ``hello`` (the token) with ``rank``; ``beat`` (state letter of the rank);
``stack`` (a piece of the rank's stack); ``gone``, with the rank's ``error`` if it recorded one, its ``exit`` code if
it left because its work was done, and whether the Linux kernel killed something here for want of ``memory``. The
supervisor answers each line with ``beat``. Its orders are ``dump`` (report the rank's stack) and ``end``.
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

from sdtune.launch import processes
from sdtune.launch.processes import send_signal, state_and_parent

WHERE = "SDTUNE_SUPERVISOR"
"""Environment variable: ``address:port`` of the supervisor, the timeout in seconds, and the token of the attempt."""
_RECORD_LIMIT = 65_536  # bytes of a rank's error that are kept: a pipe holds no more at once
_ORDERED = "the supervisor ends the job"


def _launchers(pid: int) -> list[int]:
    """Hydra's processes above a rank on this host: the proxy that started it, and the processes that started that."""
    found = []
    while pid > 1:
        try:
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except OSError:
            break
        if not name.startswith("hydra"):
            break
        found.append(pid)
        pid = state_and_parent(pid)[1]
    return found


class RankPipe:
    """The agent's end of the pipe on which the rank writes its error, and its stack when asked for it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        self.error: object = None
        self.exit: object = None
        self._pending = b""
        os.set_blocking(descriptor, False)

    def read(self) -> str:
        """Read what is there: an error is kept in ``error``, the code of a rank that left in ``exit``.

        Returns:
            Anything else: a piece of a stack.
        """
        pieces = []
        while self.descriptor is not None:
            try:
                data = os.read(self.descriptor, 65_536)
            except BlockingIOError:
                break
            if not data:
                self.descriptor = None
                break
            pieces.append(data)
        *lines, self._pending = (self._pending + b"".join(pieces)).split(b"\n")
        self._pending = self._pending[-_RECORD_LIMIT:]
        stack = []
        for line in lines:
            if line.startswith(b"{"):
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if set(said) == {"exit"}:
                        self.exit = said["exit"]
                    else:
                        self.error = said
            else:
                stack.append(line.decode(errors="replace") + "\n")
        return "".join(stack)


class Agent:
    """One connection to the supervisor, for one rank."""

    def __init__(self, rank: int, pid: int, launcher: int, where: Mapping[str, str], pipe: RankPipe, log: Path) -> None:
        self.rank, self.pid, self.pipe, self.log = rank, pid, pipe, log
        self.timeout = float(where["timeout"])
        self.launchers = _launchers(launcher)
        self.killed_for_memory = processes.killed_for_memory()
        try:
            self.rank_end: int | None = os.pidfd_open(pid)
        except ProcessLookupError:  # the rank was faster than this process
            self.rank_end = None
        address, _, port = where["address"].rpartition(":")
        self.connection = socket.create_connection((address, int(port)), timeout=self.timeout)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(hello=where["token"], rank=rank)
        self._heard, self._due, self._pending = time.monotonic(), time.monotonic(), b""

    def send(self, **what: object) -> None:
        """Send one line."""
        self.connection.sendall(json.dumps(what).encode() + b"\n")

    def report_end(self) -> None:
        """Tell the supervisor how the rank ended."""
        self.pipe.read()
        memory = processes.killed_for_memory() > self.killed_for_memory
        self.send(gone=True, error=self.pipe.error, exit=self.pipe.exit, memory=memory)

    def end_rank(self, why: str) -> None:
        """Kill the rank, and write the reason to the rank's log.

        Also kill its launchers on this host, unless the supervisor ordered it: they report how each rank ended, first.
        """
        append_to_log(self.log, f"agent: {why}; this rank is ended\n")
        if self.rank_end is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.rank_end, signal.SIGKILL)
        if why != _ORDERED:
            send_signal(self.launchers, signal.SIGKILL)

    def watch(self) -> None:
        """Exchange lines with the supervisor until the rank ends, or has to be ended."""
        try:
            while (why := self._step()) == "":
                pass
        except ConnectionError:  # a killed supervisor that had a line unread resets the connection
            why = "the supervisor is gone"
        except OSError as error:
            why = f"the connection to the supervisor broke ({error.strerror or error})"
        if why is not None:
            self.end_rank(why)
            if why == _ORDERED:
                self._confirm_end()

    def _confirm_end(self) -> None:
        """Wait until the killed rank has ended and report it, unless the supervisor leaves first."""
        with contextlib.suppress(OSError):
            while self.rank_end is not None:
                readable, _, _ = select.select([self.connection.fileno(), self.rank_end], [], [])
                if self.rank_end in readable:
                    break
                if not self.connection.recv(4096):
                    return
            self.report_end()

    def _step(self) -> str | None:
        """Wait for the next event and handle it.

        Returns:
            Empty while the rank runs; None when it has ended; else why it has to be ended.
        """
        sources = [x for x in (self.connection.fileno(), self.rank_end, self.pipe.descriptor) if x is not None]
        wait = 0.0 if self.rank_end is None else max(0.0, self._due - time.monotonic())
        readable, _, _ = select.select(sources, [], [], wait)
        connected = self.connection.fileno() in readable
        if self.rank_end is None or self.rank_end in readable:
            if connected and not self.connection.recv(1, socket.MSG_PEEK):
                return "the supervisor is gone"  # it ended first, and with it the rank's launcher
            self.report_end()
            return None
        if self.pipe.descriptor in readable and (stack := self.pipe.read()):
            append_to_log(self.log, stack)
            self.send(stack=stack)
        if connected and (why := self._obey()):
            return why
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + min(2.0, self.timeout / 5)
            self.send(beat=state_and_parent(self.pid)[0])
        if time.monotonic() - self._heard > self.timeout:
            return f"nothing was received from the supervisor for {self.timeout:.0f} s"
        return ""

    def _obey(self) -> str:
        """Read the supervisor's lines; returns why the rank has to be ended, if it has."""
        data = self.connection.recv(4096)
        if not data:
            return "the supervisor is gone"
        self._heard = time.monotonic()
        *orders, self._pending = (self._pending + data).split(b"\n")
        if b"end" in orders:
            return _ORDERED
        if b"dump" in orders:  # the rank's faulthandler writes its stack to the pipe
            send_signal([self.pid], signal.SIGUSR1)
        return ""


def append_to_log(log: Path, text: str) -> None:
    """Add to the rank's log; a full disk must not keep a rank alive."""
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        print(f"{log}: {error}", file=sys.stderr)


def main(rank: int, pid: int, launcher: int) -> None:
    """Watch rank ``rank``, process ``pid``, which ``launcher`` started; its end of the pipe is standard input."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.closerange(3, 1024)  # Hydra waits until its pipes are closed
    address, timeout, token = os.environ[WHERE].split(",")
    where = {"address": address, "timeout": timeout, "token": token}
    log = Path("logs") / f"rank-{rank}.log"
    try:
        agent = Agent(rank, pid, launcher, where, RankPipe(0), log)
    except OSError as error:
        append_to_log(log, f"agent: the supervisor at {address} cannot be reached ({error}); this rank is ended\n")
        send_signal([pid], signal.SIGKILL)  # without an agent it might outlive the job
        return
    agent.watch()
