"""The error that ended a rank, as data: ``logs/error-<rank>.json`` of the run folder.

``cli.run`` records it before the rank exits. It goes two ways: into the file on the rank's own host, and through a pipe
to the rank's agent, which sends it to the supervisor. The pipe needs no disk, so that the cause is known on a full one.

``rank.sh`` sets ``SDTUNE_RUN`` and ``SDTUNE_RANK``, and ``SDTUNE_AGENT_FD`` when there is an agent.
"""

import contextlib
import json
import os
import re
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput, DrawingFailed, HostBusy, PortTaken, TrainingFailed
from sdtune.files import write_atomically
from standalone import run_state

AGENT_FD = "SDTUNE_AGENT_FD"
"""Environment variable: file descriptor of the pipe to this rank's agent."""
BAD_INPUT = "bad_input"
"""Kind: the job cannot be done as it was asked for (:class:`sdtune.errors.BadInput`)."""
FAILURE = "failure"
"""Kind: sdtune gave up on purpose (:class:`sdtune.errors.TrainingFailed`); another attempt would end alike."""
UNEXPECTED = "unexpected"
"""Kind: any other exception."""
_MESSAGE_LIMIT, _TRACEBACK_LIMIT = 1_500, 8_000  # characters; escaped as JSON they fit into a pipe of 64 KB
# what the libraries raise when another rank has left: a consequence, not the cause
_CONSEQUENCE = re.compile(
    r"[Cc]onnection (closed|reset|refused|was)|Broken pipe|timed out|Timed out|gloo|DistNetworkError|TCPStore"
)


@dataclass(frozen=True, kw_only=True)
class RankError:
    """What ended a rank."""

    rank: int
    """Number of the rank."""
    host: str
    """Host name, as the host itself has it."""
    time: float
    """Unix time, by the host's clock."""
    kind: str
    """:data:`BAD_INPUT`, :data:`FAILURE` or :data:`UNEXPECTED`."""
    exception: str
    """Class of the exception, as a traceback prints it."""
    message: str
    """Its text."""
    traceback: str
    """The traceback as Python prints it."""

    @classmethod
    def of(cls, error: Exception, rank: int) -> "RankError":
        """Describe an exception that this rank ends with."""
        kind = UNEXPECTED
        if isinstance(error, BadInput):
            kind = BAD_INPUT
        elif isinstance(error, TrainingFailed | DrawingFailed):
            kind = FAILURE
        name = type(error).__qualname__
        if type(error).__module__ not in ("builtins", "__main__"):
            name = f"{type(error).__module__}.{name}"
        text = "".join(traceback.format_exception(error))
        return cls(
            rank=rank,
            host=os.uname().nodename,
            time=time.time(),
            kind=kind,
            exception=name,
            message=str(error)[:_MESSAGE_LIMIT],
            traceback=text[-_TRACEBACK_LIMIT:],
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "RankError":
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: a field is missing, unknown, or of another type.
        """
        fields = cls.__dataclass_fields__
        if not isinstance(values, Mapping) or set(values) != set(fields):
            raise ValueError(f"an error of a rank is an object with the fields {', '.join(fields)}")
        numbers = {"rank": int, "time": float}
        wrong = [name for name, value in values.items() if type(value) is not numbers.get(name, str)]
        if wrong:
            raise ValueError(f"an error of a rank has values of another type: {', '.join(wrong)}")
        return cls(**values)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @property
    def summary(self) -> str:
        """One line: ``error: <message>`` for what sdtune raises on purpose, else ``<class>: <message>``."""
        first = self.message.strip().partition("\n")[0]
        if self.kind != UNEXPECTED:
            return f"error: {first}"
        return f"{self.exception}: {first}" if first else self.exception

    @property
    def is_final(self) -> bool:
        """Whether another attempt would end in the same way."""
        return self.kind != UNEXPECTED

    @property
    def used_by(self) -> str:
        """The other run that uses the rank's host, which is why it did not start; empty for any other reason."""
        if self.exception != f"{HostBusy.__module__}.{HostBusy.__qualname__}":
            return ""
        return self.message.partition(HostBusy.USED_BY)[2].partition(";")[0]

    @property
    def is_port_taken(self) -> bool:
        """Whether a program has taken the port where the ranks were to meet."""
        return self.exception == f"{PortTaken.__module__}.{PortTaken.__qualname__}"

    @property
    def is_consequence(self) -> bool:
        """Whether it only says that another rank has left."""
        return self.kind == UNEXPECTED and _CONSEQUENCE.search(self.summary) is not None

    @property
    def lines(self) -> list[str]:
        """What a report shows, in lines: of what sdtune raises on purpose the message, else the traceback."""
        text = self.traceback if self.kind == UNEXPECTED else f"error: {self.message}"
        return text.rstrip("\n").split("\n")


def path_of(run: Path, rank: int) -> Path:
    """The file of a rank's error."""
    return run / "logs" / f"error-{rank}.json"


def write(run: Path, error: RankError) -> None:
    """Write the file of a rank's error, if the disk takes it."""
    with contextlib.suppress(OSError):
        write_atomically(path_of(run, error.rank), error.to_json() + "\n")


def remove_all(run: Path) -> None:
    """Remove the errors of an earlier attempt."""
    for path in (run / "logs").glob("error-*.json"):
        path.unlink(missing_ok=True)


class Reporter:
    """Reports the error of the rank that this process is; of a process that is no rank of a run, it reports nothing."""

    def __init__(self) -> None:
        self.run = os.environ.get(run_state.RUN)
        # removed from the environment: a process that this one starts is not the rank, and has other files open
        rank, pipe = os.environ.pop(run_state.RANK, ""), os.environ.pop(AGENT_FD, "")
        self.rank = int(rank) if rank.isdigit() else None
        self.pipe = int(pipe) if pipe.isdigit() and self.rank is not None else None

    def leave(self, code: int) -> None:
        """Tell the agent that this rank ends because its work is done, with this exit code."""
        if self.pipe is not None:
            with contextlib.suppress(OSError):
                os.write(self.pipe, json.dumps({"exit": code}).encode() + b"\n")

    def report(self, error: Exception) -> None:
        """Send the error to the agent, and write its file; neither may hide the error itself."""
        if self.run is None or self.rank is None:
            return
        described = RankError.of(error, self.rank)
        if self.pipe is not None:
            with contextlib.suppress(OSError):
                os.set_blocking(self.pipe, False)  # an agent that does not read must not keep this rank
                os.write(self.pipe, described.to_json().encode() + b"\n")
        write(Path(self.run), described)
