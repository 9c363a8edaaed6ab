"""The pool of workers: batches go one by one to whichever worker is free, on this host or another.

A batch of a worker that is lost goes to another one. So does a batch that takes much longer than any other did, since
its worker may never answer; the first result counts.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput, DrawingFailed
from sdtune.files import write_atomically
from sdtune.host.ssh import Reach, command_on
from sdtune.inference.plan import Plan
from sdtune.inference.results import write_images
from sdtune.inference.worker import Worker
from sdtune.launch.run_folder import Run
from sdtune.settings import GenerationJob
from standalone import run_state

PROGRAM = str(Path(__file__).parents[2] / "generate_images.py")
CHECK_SECONDS = 300.0
"""A host gets so long to say that it can draw; it imports torch and reads the job."""
OVERDUE_FACTOR, OVERDUE_SECONDS = 2.0, 10.0
"""A batch is overdue after this many times the longest time of a batch, and at least after these seconds."""


class WorkerPool:
    """The batches of a plan, the workers that have them, and what became of each."""

    def __init__(self, job: GenerationJob, plan: Plan, there: Collection[int] = ()) -> None:
        """Nothing is started yet.

        Args:
            job: what is asked for.
            plan: of this host; all hosts have the same.
            there: batches whose images are in ``drawn/`` already.
        """
        self.job, self.plan, self.folder = job, plan, Run(job.run_dir).drawn
        self.lost: dict[str, str] = {}
        """{host: why it was given up, or which batch it did not deliver in time}"""
        self._waiting = deque(number for number in range(len(plan.batches)) if number not in there)
        self._there = len(plan.batches) - len(self._waiting)
        self._in_flight: dict[int, list[tuple[Worker, float]]] = {}
        """{batch: the workers that have it, each with the time when it got it}"""
        self._done: dict[int, str] = dict.fromkeys(there, "")
        """{batch: host}; the host is empty where the images were there."""
        self._longest = 0.0
        self._workers: list[Worker] = []
        self._began = time.time()
        self._changed = threading.Condition()

    def take(self, worker: Worker) -> int | None:
        """The next batch for a worker; waits while all are in flight. None: all are done."""
        with self._changed:
            while len(self._done) < len(self.plan.batches):
                number = self._waiting.popleft() if self._waiting else self._overdue(worker)
                if number is not None:
                    self._in_flight.setdefault(number, []).append((worker, time.monotonic()))
                    return number
                self._changed.wait(1)
            return None

    def _overdue(self, worker: Worker) -> int | None:
        """A batch that only one other worker has, and has for too long."""
        limit = max(OVERDUE_SECONDS, OVERDUE_FACTOR * self._longest)
        for number, flights in self._in_flight.items():
            another = len(flights) == 1 and flights[0][0] is not worker
            if self._longest and another and time.monotonic() - flights[0][1] > limit:
                return number
        return None

    def deliver(self, worker: Worker, number: int, files: Mapping[str, bytes]) -> None:
        """Write the images of a batch."""
        with self._changed:
            flights = self._in_flight.pop(number, [])
            if number in self._done:  # another worker was faster
                return
            write_images(files, self.folder)
            self._done[number] = worker.host
            for other, began in flights:
                if other is worker:
                    self._longest = max(self._longest, time.monotonic() - began)
                elif other.host != worker.host:
                    self.lost.setdefault(other.host, f"did not hand batch {number} over in time")
            self._report()
            self._changed.notify_all()

    def lose(self, worker: Worker, why: str) -> None:
        """Give a worker up; its batch goes to another one."""
        with self._changed:
            if len(self._done) == len(self.plan.batches):
                return
            self._workers.remove(worker)
            self.lost[worker.host] = why
            for number, flights in list(self._in_flight.items()):
                left = [flight for flight in flights if flight[0] is not worker]
                if left:
                    self._in_flight[number] = left
                elif flights:
                    del self._in_flight[number]
                    self._waiting.appendleft(number)
            print(f"warning: {worker.host} {why}; another process gets its batch", flush=True)
            self._report()
            self._changed.notify_all()

    def _report(self, **more: Any) -> None:
        """Write the state that standalone/run_state.py reads, and print a line."""
        names = {name for number in self._done for name in self.plan.names(number)}
        hosts = [host for host in self._done.values() if host]
        share = len(hosts) / max(1, len(self.plan.batches) - self._there)
        spent = time.time() - self._began
        state = {
            "pictures": len(names),
            "of": len(self.plan.requests),
            "began": self._began,
            "eta_s": spent / share - spent if share else None,
            "hosts": {host: hosts.count(host) for host in sorted(set(hosts))},
            "lost": self.lost,
            **more,
        }
        write_atomically(Path(self.job.run_dir) / run_state.DRAWING, json.dumps(state) + "\n")
        print(f"{state['pictures']} of {state['of']} pictures", flush=True)

    def run(self, commands: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Generate all batches into ``drawn/``.

        Args:
            commands: {host: the command of each worker there}. Every host's first worker gets a batch before any
                host's second.

        Raises:
            DrawingFailed: no worker is left; says what became of each host.
        """
        most = max(map(len, commands.values()))
        order = [(host, each[i]) for i in range(most) for host, each in commands.items() if i < len(each)]
        self._workers = [Worker(self, host, command) for host, command in order]
        self._report()
        started = list(self._workers)
        try:
            for worker in started:
                worker.start()
            with self._changed:
                while self._workers and len(self._done) < len(self.plan.batches):
                    self._changed.wait(1)
        finally:
            for worker in started:
                worker.end()
        if len(self._done) < len(self.plan.batches):
            reasons = "; ".join(f"{host} {why}" for host, why in sorted(self.lost.items()))
            raise DrawingFailed(f"no process is left to draw: {reasons}")
        self._report(ended=time.time())


def worker_commands(
    request: Sequence[str],
    plan: Plan,
    hosts: Mapping[str, str],
    reach: Reach = command_on,
) -> dict[str, list[list[str]]]:
    """{host: the command of each worker} on this host and on ``hosts`` {name: address}, each of which is asked first.

    Args:
        request: the arguments that say what is drawn: ``--job FILE``, or ``--class-pictures FILE``.
        plan: of this host.
        hosts: the others.
        reach: the command line that runs a command at an address.

    Raises:
        BadInput: a host cannot generate what is asked for, or would do it from another copy.
    """
    program = [sys.executable, "-E", "-s", PROGRAM, *request]
    here = os.uname().nodename
    commands = {here: [[*program, "--worker", str(i)] for i in range(len(plan.cores))]}
    with ThreadPoolExecutor(max_workers=16) as pool:
        asked = {
            name: pool.submit(_check, name, reach(address, [*program, "--check"])) for name, address in hosts.items()
        }
    for name, answer in asked.items():
        found = answer.result()
        if found["fingerprint"] != plan.fingerprint:
            raise BadInput(f"{name}: the copy of the run, or the job, differs from that of {here}; copy it there again")
        workers = [[*program, "--worker", str(i)] for i in range(found["processes"])]
        commands[name] = [reach(hosts[name], worker) for worker in workers]
    return commands


def _check(name: str, command: Sequence[str]) -> dict[str, Any]:
    """Run ``generate_images.py --check`` on a host; returns what it prints."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"{name}: it does not answer within {CHECK_SECONDS:g} s; log in there, and see what its shell waits for"
        ) from None
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "the check printed nothing")
        raise BadInput(f"{name}: {last.removeprefix('error: ')}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
