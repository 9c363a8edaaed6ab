"""Start ranks of textual_inversion.py as a launcher would, on loopback.

Ranks are forked from a server that has imported torch and the trainer already: that takes most of the time of a run of
two steps. Everything else is as in a new process: environment, command line, signals, exit code.
"""

import contextlib
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
from pathlib import Path

PYTHON = Path(__file__).parents[1]
# Seconds that a program of torch gets, however busy the machine: to fail sooner would prove nothing.
PATIENCE = 600

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["textual_inversion", "sdtune.training.trainer"])


def free_port() -> int:
    """One that nobody has, nor gets from the Linux kernel for the asking while a rank still imports torch."""
    while True:
        with socket.socket() as s, contextlib.suppress(OSError):
            port = random.SystemRandom().randrange(20_000, 29_000)  # the port where ranks usually meet is above
            s.bind(("127.0.0.1", port))
            return port


def _run(argv: list[str], env: dict[str, str], output: str) -> None:
    """The life of a rank, in its own process."""
    with Path(output).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()  # of what the server was started with; what libraries read when imported, they have read
    os.environ.update(env)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


class Rank:
    """A rank, with what subprocess.Popen has; standard output and standard error go into one file."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        handle, self._output = tempfile.mkstemp(prefix="rank-")
        os.close(handle)
        self._process = _FORKS.Process(target=_run, args=(argv, env, self._output))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, None]:
        """Wait for its end; returns what it printed."""
        self._process.join(timeout)
        assert self.returncode is not None, f"it still runs after {timeout} s"
        output = Path(self._output)
        text = output.read_text(encoding="utf-8")
        output.unlink()
        return text, None


def start_ranks(job_file: Path | list[Path], count: int, *, meet: bool = True) -> list[Rank]:
    """Start ``count`` ranks; not ``meet``: without telling them where.

    With a job file for each rank, each has a run folder of its own, as on hosts that share no disk.
    """
    job_files = job_file if isinstance(job_file, list) else [job_file] * count
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if meet else {}
    ranks = []
    for rank in range(count):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "MPI_", "KMP_"))}
        env |= {"PYTHONPATH": str(PYTHON), "OMP_NUM_THREADS": "1", **where}
        env |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
        ranks.append(Rank([str(PYTHON / "textual_inversion.py"), "--job", str(job_files[rank])], env))
    return ranks


def run_ranks(job_file: Path | list[Path], count: int, *, meet: bool = True) -> list[str]:
    """Run ranks to their end, which has to be a good one; returns what each printed."""
    ranks = start_ranks(job_file, count, meet=meet)
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, "\n".join(outputs)
    return outputs
