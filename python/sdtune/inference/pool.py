"""Sharing the drawing of pictures out: batches go one by one to whichever process is free, on this host or another.

Each process (a *seat*) is fed numbers of batches on its standard input and hands whole pictures back on its standard
output, over ssh where it is another host's, so that a host which is lost takes nothing along but the batch it was at.
That one goes to another seat; as does one that takes much longer than any did, for it may never come.
"""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from sdtune.errors import BadInput, DrawingFailed
from sdtune.files import write_atomically
from sdtune.host.ssh import command_on
from sdtune.inference.generation import Plan, artist, draw_batch, keep, keep_to
from sdtune.launch.run_folder import Run
from sdtune.settings import GenerationJob
from standalone import run_state

PROGRAM = str(Path(__file__).parents[2] / "generate_images.py")
_LATE, _LEAST = 2.0, 10.0
"""A batch is given to a second seat after so many times the longest that was handed over, and so many seconds."""


class Lost(Exception):
    """A seat does not draw any more; the message says why."""


class Seat(threading.Thread):
    """One process that draws; it is started with the first batch that is there for it."""

    def __init__(self, sharing: "Sharing", host: str, command: Sequence[str]) -> None:
        super().__init__(name=f"seat on {host}", daemon=True)
        self.sharing, self.host, self.command = sharing, host, list(command)
        self.process: subprocess.Popen[str] | None = None
        self._ears: threading.Thread | None = None
        self._said: deque[str] = deque(maxlen=20)

    def run(self) -> None:
        """Draw until nothing is left to draw, or this seat is lost."""
        try:
            while (number := self.sharing.take(self)) is not None:
                self.sharing.deliver(self, number, self._draw(number))
        except Exception as error:  # noqa: BLE001 - a seat's end must not leave the others waiting for its batch
            self.sharing.lose(self, str(error) if isinstance(error, Lost) else f"{type(error).__name__}: {error}")
        finally:
            self.end()

    def _draw(self, number: int) -> dict[str, bytes]:
        if self.process is None:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            self._ears = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
            self._ears.start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line.endswith("\n"):
            raise Lost(self._why())
        answer = json.loads(line)
        return {name: base64.b64decode(png) for name, png in answer["pictures"].items()}

    def _listen(self, stream: IO[str]) -> None:
        self._said.extend(line.strip() for line in stream if line.strip())

    def _why(self) -> str:
        assert self.process is not None
        assert self._ears is not None
        code = self.process.wait()
        self._ears.join(5)  # its last words; a master connection of ssh may hold the stream open
        last = self._said[-1].removeprefix("error: ") if self._said else "it said nothing"
        return f"does not answer ({last})" if code == 255 else f"stopped drawing (exit code {code}: {last})"

    def end(self) -> None:
        """End the process, which has nothing left to do."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Sharing:
    """The batches of a plan, who draws them, and what came of it."""

    def __init__(self, job: GenerationJob, planned: Plan) -> None:
        self.job, self.planned, self.folder = job, planned, Run(job.run_dir).drawn
        self.lost: dict[str, str] = {}
        """{host: why it was given up, or which batch it was not waited for with}"""
        self._waiting = deque(range(len(planned.batches)))
        self._flying: dict[int, list[tuple[Seat, float]]] = {}
        self._done: dict[int, str] = {}
        self._longest = 0.0
        self._seats: list[Seat] = []
        self._began = time.time()
        self._changed = threading.Condition()

    def take(self, seat: Seat) -> int | None:
        """The next batch for a seat; waits while all are being drawn. None: all are done."""
        with self._changed:
            while len(self._done) < len(self.planned.batches):
                number = self._waiting.popleft() if self._waiting else self._overdue(seat)
                if number is not None:
                    self._flying.setdefault(number, []).append((seat, time.monotonic()))
                    return number
                self._changed.wait(1)
            return None

    def _overdue(self, seat: Seat) -> int | None:
        limit = max(_LEAST, _LATE * self._longest)
        for number, flights in self._flying.items():
            alone = len(flights) == 1 and flights[0][0] is not seat
            if self._longest and alone and time.monotonic() - flights[0][1] > limit:
                return number
        return None

    def deliver(self, seat: Seat, number: int, files: Mapping[str, bytes]) -> None:
        """Keep the pictures of a batch."""
        with self._changed:
            flights = self._flying.pop(number, [])
            if number in self._done:  # another seat was faster
                return
            keep(dict(files), self.folder)
            self._done[number] = seat.host
            for other, began in flights:
                if other is seat:
                    self._longest = max(self._longest, time.monotonic() - began)
                elif other.host != seat.host:
                    self.lost.setdefault(other.host, f"did not hand batch {number} over in time")
            self._tell()
            self._changed.notify_all()

    def lose(self, seat: Seat, why: str) -> None:
        """Give a seat up; what it was at is for another."""
        with self._changed:
            if len(self._done) == len(self.planned.batches):
                return
            self._seats.remove(seat)
            self.lost[seat.host] = why
            for number, flights in list(self._flying.items()):
                left = [flight for flight in flights if flight[0] is not seat]
                if left:
                    self._flying[number] = left
                elif flights:
                    del self._flying[number]
                    self._waiting.appendleft(number)
            print(f"warning: {seat.host} {why}; its batch is drawn by another", flush=True)
            self._tell()
            self._changed.notify_all()

    def _tell(self, **more: Any) -> None:
        names = {name for number in self._done for name in self.planned.names(number)}
        hosts = list(self._done.values())
        share = len(self._done) / len(self.planned.batches)
        spent = time.time() - self._began
        state = {
            "pictures": len(names),
            "of": len(self.planned.requests),
            "began": self._began,
            "eta_s": spent / share - spent if share else None,
            "hosts": {host: hosts.count(host) for host in sorted(set(hosts))},
            "lost": self.lost,
            **more,
        }
        write_atomically(Path(self.job.run_dir) / run_state.DRAWING, json.dumps(state) + "\n")
        print(f"{state['pictures']} of {state['of']} pictures", flush=True)

    def draw(self, seats: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Draw all batches into ``drawn/``.

        Args:
            seats: {host: [command of a process that draws there]}; a host's first process before any host's second.

        Raises:
            DrawingFailed: no seat is left; says what became of each host.
        """
        most = max(map(len, seats.values()))
        order = [(host, commands[i]) for i in range(most) for host, commands in seats.items() if i < len(commands)]
        self._seats = [Seat(self, host, command) for host, command in order]
        self._tell()
        started = list(self._seats)
        try:
            for seat in started:
                seat.start()
            with self._changed:
                while self._seats and len(self._done) < len(self.planned.batches):
                    self._changed.wait(1)
        finally:
            for seat in started:
                seat.end()
        if len(self._done) < len(self.planned.batches):
            reasons = "; ".join(f"{host} {why}" for host, why in sorted(self.lost.items()))
            raise DrawingFailed(f"no process is left to draw: {reasons}")
        self._tell(ended=time.time())


def seats_of(job_file: str, planned: Plan, hosts: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """The commands of the processes that draw, on this host and on ``hosts`` {name: address}, which are asked.

    Raises:
        BadInput: a host cannot draw what is asked, or would draw it from another copy.
    """
    program = [sys.executable, PROGRAM, "--job", job_file]
    here = os.uname().nodename
    seats = {here: [[*program, "--worker", str(i)] for i in range(len(planned.cores))]}
    with ThreadPoolExecutor(max_workers=16) as pool:
        asked = {
            name: pool.submit(_ask, name, command_on(address, [*program, "--check"])) for name, address in hosts.items()
        }
    for name, answer in asked.items():
        found = answer.result()
        if found["fingerprint"] != planned.fingerprint:
            raise BadInput(f"{name}: the copy of the run, or the job, differs from that of {here}; bring it there anew")
        workers = [[*program, "--worker", str(i)] for i in range(found["processes"])]
        seats[name] = [command_on(hosts[name], worker) for worker in workers]
    return seats


def _ask(name: str, command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise BadInput(f"{name}: {last.removeprefix('error: ')}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def work(job: GenerationJob, planned: Plan, share: int) -> None:
    """Be a seat: draw the batches whose numbers come in, with the given share of this host's cores."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    cores = planned.cores[share]
    keep_to(cores)
    painter = artist(job, planned, len(cores))
    for line in sys.stdin:
        files = draw_batch(painter, job, planned, int(line))
        pictures = {name: base64.b64encode(png).decode("ascii") for name, png in files.items()}
        print(json.dumps({"pictures": pictures}), file=answers, flush=True)
