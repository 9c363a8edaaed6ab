"""One process that generates images, on this host or another: its side of the pipe, and that of the pool.

The pool starts a worker as a command, over ssh where it is on another host. A worker reads batch numbers from standard
input, one a line, and answers each with one line of JSON on standard output, which holds the images. So a host that is
lost loses no more than the batch that it had.
"""

import base64
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Protocol

from sdtune.inference.draw import bind_to_cores, draw_batch, load_generator
from sdtune.inference.plan import Plan
from sdtune.settings import GenerationJob


class WorkerLost(Exception):
    """A worker does not generate any more; the message says why."""


class Batches(Protocol):
    """What a worker needs of the pool."""

    def take(self, worker: "Worker") -> int | None:
        """The number of the next batch; None: all are done."""

    def deliver(self, worker: "Worker", number: int, files: Mapping[str, bytes]) -> None:
        """Keep the images of a batch."""

    def lose(self, worker: "Worker", why: str) -> None:
        """Give the worker up."""


class Worker(threading.Thread):
    """The pool's side of one process. The process starts with the first batch that the worker gets."""

    def __init__(self, pool: Batches, host: str, command: Sequence[str]) -> None:
        super().__init__(name=f"worker on {host}", daemon=True)
        self.pool, self.host, self.command = pool, host, list(command)
        self.process: subprocess.Popen[str] | None = None
        self._stderr_reader: threading.Thread | None = None
        self._stderr: deque[str] = deque(maxlen=20)

    def run(self) -> None:
        """Take and deliver batches until all are done, or this worker is lost."""
        try:
            while (number := self.pool.take(self)) is not None:
                self.pool.deliver(self, number, self._generate(number))
        except Exception as error:  # noqa: BLE001 - whatever ends a worker, another one has to get its batch
            self.pool.lose(self, str(error) if isinstance(error, WorkerLost) else f"{type(error).__name__}: {error}")
        finally:
            self.end()

    def _generate(self, number: int) -> dict[str, bytes]:
        if self.process is None:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            self._stderr_reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
            self._stderr_reader.start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line.endswith("\n"):
            raise WorkerLost(self._failure())
        answer = json.loads(line)
        return {name: base64.b64decode(png) for name, png in answer["pictures"].items()}

    def _read(self, stream: IO[str]) -> None:
        self._stderr.extend(line.strip() for line in stream if line.strip())

    def _failure(self) -> str:
        """Why the process ended: its last line on standard error, and its exit code (255 is ssh's own)."""
        assert self.process is not None
        assert self._stderr_reader is not None
        code = self.process.wait()
        self._stderr_reader.join(5)  # not for ever: a master connection of ssh can hold the stream open
        last = self._stderr[-1].removeprefix("error: ") if self._stderr else "without a message"
        return f"does not answer ({last})" if code == 255 else f"stopped drawing (exit code {code}: {last})"

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def serve(job: GenerationJob, plan: Plan, index: int) -> None:
    """Be the process of a worker: generate the batches whose numbers come in, on the cores of process ``index``."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that nothing that a library prints is taken for an answer
    cores = plan.cores[index]
    bind_to_cores(cores)
    generator = load_generator(job, plan, len(cores))
    for line in sys.stdin:
        files = draw_batch(generator, job, plan, int(line))
        pictures = {name: base64.b64encode(png).decode("ascii") for name, png in files.items()}
        print(json.dumps({"pictures": pictures}), file=answers, flush=True)
