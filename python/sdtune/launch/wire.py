"""The protocol between the supervisor and the per-rank agents, for both ends.

The supervisor greets each connection with :data:`GREETING_SIZE` random bytes. The agent answers with
:data:`HELLO_SIZE` bytes: the number of its rank, and a proof that it knows the token of the attempt
(:func:`make_hello`). The token itself is never sent, and nothing else is read before the proof. The supervisor
welcomes the agent with ``beat``.

Then both send lines, every few seconds. Those of the agent are JSON objects, see :class:`Message`. The supervisor
answers each with ``beat``. Its orders are ``dump`` (report the rank's stack) and ``end``.
"""

import hmac
import json
import socket
from dataclasses import dataclass
from typing import Any

from sdtune.launch.rank_error import RankError

WHERE = "SDTUNE_SUPERVISOR"
"""Environment variable: where the supervisor listens, the timeout in seconds, and the token of the attempt."""
WELCOME = b"beat\n"
GREETING_SIZE = 32
_RANK_SIZE = 4
HELLO_SIZE = _RANK_SIZE + 32
LINE_LIMIT = 131_072
"""Bytes of a line: a rank's error, or a piece of its stack, escaped as JSON."""
STACK_PIECE = 16_384
"""Characters of a stack that an agent sends in one line."""


class ProtocolError(Exception):
    """The other end sent what the protocol does not know."""


def make_hello(token: str, greeting: bytes, rank: int) -> bytes:
    """What the agent of a rank answers to a greeting."""
    number = rank.to_bytes(_RANK_SIZE, "big")
    return number + hmac.digest(token.encode(), greeting + number, "sha256")


def authenticated_rank(token: str, greeting: bytes, hello: bytes) -> int:
    """The rank whose agent sent this answer.

    Raises:
        ProtocolError: it does not know the token.
    """
    rank = int.from_bytes(hello[:_RANK_SIZE], "big")
    if not hmac.compare_digest(make_hello(token, greeting, rank), hello):
        raise ProtocolError("no agent of this attempt")
    return rank


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Receive so many bytes.

    Raises:
        ConnectionError: the other end closed the connection before.
    """
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionAbortedError("the other end closed the connection")
        data += piece
    return data


class Lines:
    """Cuts what a connection or a pipe brings into lines, in linear time and bounded memory."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was received; the lines that are complete now.

        Raises:
            ProtocolError: a line is longer than :data:`LINE_LIMIT`.
        """
        searched = len(self._rest)
        self._rest += data
        end = self._rest.rfind(b"\n", searched)
        lines = bytes(self._rest[:end]).split(b"\n") if end >= 0 else []
        del self._rest[: end + 1]
        if len(self._rest) > LINE_LIMIT or any(len(line) > LINE_LIMIT for line in lines):
            self._rest.clear()
            raise ProtocolError("a line is too long")
        return lines


@dataclass(frozen=True, kw_only=True)
class Message:
    """A line of an agent."""

    beat: str = ""
    """State letter of the rank's process."""
    stack: str = ""
    """A piece of the rank's stack."""
    gone: bool = False
    """The rank has ended."""
    why: str = ""
    """Why the agent ended it; empty when it ended by itself, or on an order."""
    error: RankError | None = None
    """What the rank recorded itself."""
    exit: int | None = None
    """Exit code of a rank that left because its work was done."""
    memory: bool = False
    """Whether the Linux kernel killed a process of its group, or host, for want of memory meanwhile."""


def encode(**fields: object) -> bytes:
    """A line with some of the fields of :class:`Message`; an error as the rank wrote it."""
    return json.dumps(fields).encode() + b"\n"


def parse(line: bytes, rank: int) -> Message:
    """Read a line of the agent of a rank.

    Raises:
        ProtocolError: it is none, whatever it is.
    """
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ProtocolError("a line is no object")
        checked: dict[str, Any] = {name: _checked(name, value) for name, value in fields.items()}
        message = Message(**checked)
    except (ValueError, RecursionError):
        raise ProtocolError("a line is no message") from None
    if message.error is not None and message.error.rank != rank:
        raise ProtocolError("an error is of another rank")
    return message


def _checked(name: str, value: Any) -> object:
    if name == "error":
        return None if value is None else RankError.from_mapping(value)
    if name == "exit" and value is None:
        return None
    if type(value) is not {"beat": str, "stack": str, "gone": bool, "why": str, "exit": int, "memory": bool}.get(name):
        raise ProtocolError("a field is unknown, or of another type")
    return value
