"""The supervisor's end of the connections to the agents: what each rank was last known to do.

The protocol is described in :mod:`sdtune.launch.agent`.
"""

import json
import secrets
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdtune.launch.rank_error import RankError

_LINE_LIMIT = 262_144  # bytes of a line that is not complete yet
_HELLO_LIMIT = 1_024
_STACK_LIMIT = 65_536  # characters of a rank's stack that are kept


@dataclass
class Connection:
    """A connection to an agent."""

    socket: socket.socket
    """The connected socket, non-blocking."""
    last_heard: float
    """Monotonic time at which something was received."""
    rank: int = -1
    """Number of its rank; negative until the agent has shown the token."""
    rank_state: str = ""
    """State letter of the rank's process, as last reported."""
    ended: bool = False
    """Whether the rank has ended, or the connection was closed."""
    pending: bytes = b""
    """Beginning of a line that is not complete yet."""


class AgentServer:
    """Accepts the agents of one attempt, and keeps what they report."""

    def __init__(
        self,
        address: str,
        world_size: int,
        selector: selectors.BaseSelector,
        on_error: Callable[[RankError], None] = lambda _: None,
    ) -> None:
        self.token = secrets.token_hex(16)
        self.connections: dict[int, Connection] = {}
        """By rank."""
        self.unauthenticated: list[Connection] = []
        self.ended: list[int] = []
        """Ranks that have ended, in the order in which it was reported."""
        self.lost: set[int] = set()
        """Those of them whose agent closed the connection without reporting the end."""
        self.left: set[int] = set()
        """Those of them whose work was done: they finished, or stopped on request."""
        self.out_of_memory: set[int] = set()
        """Those of them on whose host the Linux kernel killed a process for want of memory meanwhile."""
        self.last_joined = time.monotonic()
        """Monotonic time at which the last agent connected."""
        self.errors: dict[int, RankError] = {}
        self.stacks: dict[int, str] = {}
        self._world_size, self._selector, self._on_error = world_size, selector, on_error
        self._server = socket.create_server((address, 0))
        self.address = "{}:{}".format(*self._server.getsockname()[:2])
        selector.register(self._server, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        accepted, _ = self._server.accept()
        accepted.setblocking(False)
        connection = Connection(accepted, time.monotonic())
        self.unauthenticated.append(connection)
        self._selector.register(accepted, selectors.EVENT_READ, lambda: self._receive(connection))

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(65_536)
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.last_heard = time.monotonic()
        *lines, connection.pending = (connection.pending + data).split(b"\n")
        try:
            for line in lines:
                self._handle(connection, json.loads(line))
                self._send(connection, b"beat")
            if len(connection.pending) > (_HELLO_LIMIT if connection.rank < 0 else _LINE_LIMIT):
                raise ValueError("a line without end")  # noqa: TRY301 - dropped just below
        except (ValueError, KeyError, TypeError):
            self._drop(connection)

    def _handle(self, connection: Connection, message: dict[str, Any]) -> None:
        if connection.rank < 0:
            self._authenticate(connection, message)
        rank = connection.rank
        connection.rank_state = str(message.get("beat", connection.rank_state))
        if "stack" in message:
            self.stacks[rank] = (self.stacks.get(rank, "") + str(message["stack"]))[-_STACK_LIMIT:]
        if message.get("gone") and not connection.ended:
            if message.get("error"):
                self.errors[rank] = RankError.from_mapping(message["error"])
                self._on_error(self.errors[rank])
            connection.ended = True
            self.ended.append(rank)
            if message.get("exit") is not None:
                self.left.add(rank)
            if message.get("memory"):
                self.out_of_memory.add(rank)

    def _authenticate(self, connection: Connection, message: dict[str, Any]) -> None:
        rank = int(message["rank"])
        if not secrets.compare_digest(str(message["hello"]), self.token):
            raise ValueError("not an agent of this attempt")
        if not 0 <= rank < self._world_size or rank in self.connections:
            raise ValueError(f"rank {rank} is not expected")
        connection.rank = rank
        self.connections[rank] = connection
        self.last_joined = time.monotonic()
        self.unauthenticated.remove(connection)

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.rank < 0:
            self.unauthenticated.remove(connection)
        elif not connection.ended:
            connection.ended = True
            self.ended.append(connection.rank)
            self.lost.add(connection.rank)

    def _send(self, connection: Connection, order: bytes) -> None:
        try:
            connection.socket.sendall(order + b"\n")
        except OSError:  # closed, or cut off; what it does not send is judged elsewhere
            return

    def order(self, order: bytes) -> None:
        """Send an order, ``dump`` or ``end``, to the agents of all ranks that have not ended."""
        for connection in self.connections.values():
            if not connection.ended:
                self._send(connection, order)

    def stopped(self) -> set[int]:
        """Ranks whose process is stopped, by a signal or a debugger, as last reported."""
        return {rank for rank, connection in self.connections.items() if connection.rank_state in ("T", "t")}

    def unconfirmed(self, *, heard_within: float | None = None) -> list[int]:
        """Ranks whose end is not confirmed.

        Args:
            heard_within: only those whose agents sent something in so many seconds.
        """
        now = time.monotonic()
        return sorted(
            rank
            for rank, connection in self.connections.items()
            if not connection.ended and (heard_within is None or now - connection.last_heard < heard_within)
        )

    def close(self) -> None:
        """Close all connections."""
        for connection in [*self.connections.values(), *self.unauthenticated]:
            connection.socket.close()
        self._server.close()
