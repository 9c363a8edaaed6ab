"""The supervisor's end of the connections to the agents: what each rank was last known to do.

Whoever reaches the port can connect to it. So nothing that a peer sends or leaves undone raises here, keeps more than
a bounded number of descriptors and bytes, or takes the place of an agent. The protocol is :mod:`sdtune.launch.wire`.
"""

import contextlib
import errno
import os
import resource
import secrets
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sdtune.launch.rank_error import RankError
from sdtune.launch.wire import (
    GREETING_SIZE,
    HELLO_SIZE,
    WELCOME,
    Lines,
    Message,
    ProtocolError,
    authenticated_rank,
    parse,
)

_STACK_LIMIT = 65_536  # characters of a rank's stack that are kept
_AT_ONCE = 32  # connections that are accepted before the agents are served again
_UNAUTHENTICATED = 128  # connections that may still have to prove themselves, besides one for each rank
_HELLO_SECONDS = 10.0
_BURST, _MESSAGES_PER_SECOND = 200, 20  # an agent sends one message in two seconds, and the pieces of a stack
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(eq=False, kw_only=True)
class Connection:
    """A connection to an agent, or to a peer that has yet to prove that it is one."""

    socket: socket.socket
    """The connected socket, non-blocking."""
    greeting: bytes
    """What it was greeted with."""
    since: float
    """Monotonic time of its beginning."""
    last_heard: float
    """Monotonic time at which something was received."""
    hello: bytes = b""
    """What it has answered."""
    rank: int = -1
    """Number of its rank; negative until it has proved that it knows the token."""
    rank_state: str = ""
    """State letter of the rank's process, as last reported."""
    ended: bool = False
    """Whether the rank has ended, or the agent was lost."""
    messages: int = 0
    """Number of messages."""
    lines: Lines = field(default_factory=Lines)
    """What was received of a line that is not complete yet."""


class AgentServer:
    """Accepts the agents of one attempt, and keeps what they report."""

    def __init__(
        self,
        endpoint: tuple[socket.socket, str],
        world_size: int,
        selector: selectors.BaseSelector,
        on_error: Callable[[RankError], None] = lambda _: None,
    ) -> None:
        self.token = secrets.token_hex(16)
        self.connections: dict[int, Connection] = {}
        """By rank."""
        self.unauthenticated: list[Connection] = []
        """The oldest first."""
        self.ended: list[int] = []
        """Ranks that have ended, or whose agent was lost, in the order in which that was noticed."""
        self.lost: dict[int, float] = {}
        """Those of them whose agent was lost: it closed the connection without reporting the end. Since when."""
        self.ended_by_agent: dict[int, str] = {}
        """Those of them that their agent ended, and why."""
        self.left: set[int] = set()
        """Those of them whose work was done: they finished, or stopped on request."""
        self.out_of_memory: set[int] = set()
        """Those of them on whose host the Linux kernel killed a process for want of memory meanwhile."""
        self.last_joined = time.monotonic()
        """Monotonic time at which the last agent connected."""
        self.errors: dict[int, RankError] = {}
        self.stacks: dict[int, str] = {}
        self._world_size, self._selector, self._on_error = world_size, selector, on_error
        # half of all descriptors are never given to unauthenticated peers
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_unauthenticated = min(_UNAUTHENTICATED + world_size, descriptors // 2)
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self._server, self.address = endpoint
        self._server.setblocking(False)
        selector.register(self._server, selectors.EVENT_READ, self._accept)

    # --- peers that have yet to prove themselves -------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, _ = self._server.accept()
            except OSError as error:  # nobody waits any more, or the peer has left, or no descriptor is free
                if error.errno in _EXHAUSTED:
                    self._make_room()
                return
            self._greet(accepted)

    def _greet(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        now = time.monotonic()
        connection = Connection(socket=accepted, greeting=secrets.token_bytes(GREETING_SIZE), since=now, last_heard=now)
        self.unauthenticated.append(connection)
        self._selector.register(accepted, selectors.EVENT_READ, lambda: self._receive(connection))
        self._send(connection, connection.greeting)
        if len(self.unauthenticated) > self._most_unauthenticated:
            self._drop(self.unauthenticated[0])

    def _make_room(self) -> None:
        """Close the oldest unauthenticated connection, or else turn away the one that waits."""
        if self.unauthenticated:
            self._drop(self.unauthenticated[0])
            return
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._server.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def drop_old(self) -> None:
        """Close the connections that did not prove themselves in time."""
        while self.unauthenticated and time.monotonic() - self.unauthenticated[0].since > _HELLO_SECONDS:
            self._drop(self.unauthenticated[0])

    def _authenticate(self, connection: Connection) -> None:
        if len(connection.hello) < HELLO_SIZE:
            return
        rank = authenticated_rank(self.token, connection.greeting, connection.hello)
        if rank >= self._world_size or rank in self.connections:
            raise ProtocolError(f"rank {rank} is not expected")
        connection.rank = rank
        self.connections[rank] = connection
        self.last_joined = time.monotonic()
        self.unauthenticated.remove(connection)
        self._send(connection, WELCOME)

    # --- what is received ------------------------------------------------------------------------------------------

    def _receive(self, connection: Connection) -> None:
        if connection.socket.fileno() < 0:  # dropped since the selector saw it
            return
        authenticated = connection.rank >= 0
        try:
            data = connection.socket.recv(65_536 if authenticated else HELLO_SIZE - len(connection.hello))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.last_heard = time.monotonic()
        try:
            if authenticated:
                for line in connection.lines.feed(data):
                    self._handle(connection, parse(line, connection.rank))
            else:
                connection.hello += data
                self._authenticate(connection)
        except ProtocolError:
            self._drop(connection)

    def _handle(self, connection: Connection, message: Message) -> None:
        rank = connection.rank
        connection.messages += 1
        if connection.messages > _BURST + _MESSAGES_PER_SECOND * (connection.last_heard - connection.since):
            raise ProtocolError("too many messages")
        connection.rank_state = message.beat or connection.rank_state
        if message.stack:
            self.stacks[rank] = (self.stacks.get(rank, "") + message.stack)[-_STACK_LIMIT:]
        if message.gone and not connection.ended:
            if message.error is not None:
                self.errors[rank] = message.error
                self._on_error(message.error)
            if message.why:
                self.ended_by_agent[rank] = message.why
            connection.ended = True
            self.ended.append(rank)
            if message.exit is not None:
                self.left.add(rank)
            if message.memory:
                self.out_of_memory.add(rank)
        self._send(connection, b"beat\n")

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        connection.lines = Lines()
        if connection.rank < 0:
            self.unauthenticated.remove(connection)
        elif not connection.ended:
            connection.ended = True
            self.ended.append(connection.rank)
            self.lost[connection.rank] = time.monotonic()

    def _send(self, connection: Connection, data: bytes) -> None:
        with contextlib.suppress(OSError):  # closed, or cut off; what it does not send is judged elsewhere
            connection.socket.sendall(data)

    # --- for the supervisor ----------------------------------------------------------------------------------------

    def order(self, order: bytes) -> None:
        """Send an order, ``dump`` or ``end``, to the agents of all ranks that have not ended."""
        for connection in self.connections.values():
            if not connection.ended:
                self._send(connection, order + b"\n")

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
        os.close(self._spare)
