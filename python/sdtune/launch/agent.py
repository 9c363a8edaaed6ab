"""The agent of one rank: it reports to the supervisor, and ends its rank when the supervisor is gone.

``rank.sh`` starts one for each rank, in a session of its own, when a supervisor started the job. Agent and supervisor
send lines to each other every few seconds. The end that receives nothing for ``timeout`` seconds regards the other as
lost, so a host that was cut off ends its own ranks. An agent needs a few megabytes and almost no processor time.

The protocol is :mod:`sdtune.launch.wire`.
"""

import contextlib
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sdtune.launch import endpoint, processes
from sdtune.launch.processes import send_signal, state_and_parent
from sdtune.launch.rank_error import RankError
from sdtune.launch.wire import (
    GREETING_SIZE,
    STACK_PIECE,
    WELCOME,
    WHERE,
    Lines,
    ProtocolError,
    encode,
    make_hello,
    receive_exactly,
)

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
        self.exit: int | None = None
        self._lines = Lines()
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
        stack = []
        with contextlib.suppress(ProtocolError):  # endless lines are no stack
            for line in self._lines.feed(b"".join(pieces)):
                if line.startswith(b"{"):
                    self._keep(line)
                else:
                    stack.append(line.decode(errors="replace") + "\n")
        return "".join(stack)

    def _keep(self, line: bytes) -> None:
        """Keep the exit code or the error that the rank has written."""
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(line)
            if set(said) == {"exit"}:
                self.exit = int(said["exit"])
            else:
                self.error = asdict(RankError.from_mapping(said))


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
        self.connection = self._meet(where)
        self._orders = Lines()
        self._heard, self._due = time.monotonic(), time.monotonic()

    def _meet(self, where: Mapping[str, str]) -> socket.socket:
        """Connect, and prove to the supervisor that this is an agent of its attempt.

        A supervisor at which many peers knock may close a connection before it has read the proof.
        """
        end = time.monotonic() + self.timeout
        while True:
            connection = endpoint.connect(Path(), where["address"], self.timeout)
            try:
                greeting = receive_exactly(connection, GREETING_SIZE)
                connection.sendall(make_hello(where["token"], greeting, self.rank))
                receive_exactly(connection, len(WELCOME))
            except ConnectionError:
                connection.close()
                if time.monotonic() > end:
                    raise
                time.sleep(random.uniform(0.1, 0.5))
            else:
                return connection

    def send(self, **fields: object) -> None:
        """Send one line."""
        self.connection.sendall(encode(**fields))

    def report_end(self, why: str = "") -> None:
        """Tell the supervisor how the rank ended, and why, if this agent ended it."""
        self.pipe.read()
        memory = processes.killed_for_memory() > self.killed_for_memory
        self.send(gone=True, error=self.pipe.error, exit=self.pipe.exit, memory=memory, why=why)

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
        except (OSError, ProtocolError) as error:
            why = f"the connection to the supervisor broke ({error})"
        if why is not None:
            self.end_rank(why)
            self._confirm_end("" if why == _ORDERED else why)

    def _confirm_end(self, why: str) -> None:
        """Wait until the killed rank has ended and report it, and why, unless the supervisor has left or leaves."""
        with contextlib.suppress(OSError):
            while self.rank_end is not None:
                readable, _, _ = select.select([self.connection.fileno(), self.rank_end], [], [])
                if self.rank_end in readable:
                    break
                if not self.connection.recv(4096):
                    return
            self.report_end(why)

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
            for begin in range(0, len(stack), STACK_PIECE):
                self.send(stack=stack[begin : begin + STACK_PIECE])
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
        orders = self._orders.feed(data)
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
    os.dup2(null, 2)
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
    with contextlib.suppress(BrokenPipeError):  # the rank has ended, which it reports
        os.write(1, b"connected\n")  # rank.sh waits for it
    os.dup2(2, 1)
    agent.watch()
