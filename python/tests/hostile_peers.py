"""Peers that send to the supervisor's port whatever they like, some of them with the token.

    python -m tests.hostile_peers 100000

sends so many hostile messages to a server in a process of its own, and prints what its memory did.
"""

import contextlib
import json
import os
import random
import resource
import selectors
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from sdtune.launch import endpoint
from sdtune.launch.agent_server import AgentServer
from sdtune.launch.wire import GREETING_SIZE, HELLO_SIZE, WELCOME, encode, make_hello, receive_exactly

DESCRIPTORS = 256  # of the server
_BATCH = 8  # messages of a connection, at most


def _values(chance: random.Random) -> Iterator[object]:
    """Values that no field has, without end."""
    yield from (None, True, -1, 1e308, float("nan"), float("inf"), "x" * 40_000, "\ud800", [], {}, [[]] * 999)
    while True:
        yield {chance.choice(["rank", "time", "message", ""]): chance.choice([None, [], "9" * 5_000, 10**300])}


def lines(chance: random.Random) -> Iterator[bytes]:
    """Lines for a peer that has the token, without end."""
    values = _values(chance)
    while True:
        name = chance.choice(["beat", "stack", "gone", "why", "error", "hello", "socket", ""])
        yield (
            chance.choice(
                [
                    lambda name=name: json.dumps({name: next(values)}).encode(),
                    lambda: chance.randbytes(chance.randrange(2_000)),
                    lambda: b"[" * chance.choice([10, 3_000, 100_000]),
                    lambda: b'{"error":' * 3_000,
                    lambda: b'{"beat": ' + b"9" * chance.choice([4_000, 5_000]) + b"}",
                    lambda: b'"' + b"\\u0000" * 9_000,
                    lambda: b"x" * 140_000,
                    lambda: b"",
                ]
            )()
            + b"\n"
        )


def greetings(chance: random.Random) -> Iterator[bytes]:
    """What peers without the token send first, without end."""
    while True:
        yield chance.choice(
            [
                lambda: chance.randbytes(HELLO_SIZE),
                lambda: chance.randbytes(chance.randrange(HELLO_SIZE)),
                lambda: b"[" * 3_000 + b"\n",
                lambda: b"GET / HTTP/1.1\r\n\r\n",
                lambda: b'{"hello": "", "rank": 0}\n',
                lambda: b"\0" * 100_000,
                lambda: b"",
            ]
        )()


def join(connection: socket.socket, token: str, rank: int) -> None:
    """Prove to know the token.

    Raises:
        ConnectionError: the server closes the connection.
    """
    connection.sendall(make_hello(token, receive_exactly(connection, GREETING_SIZE), rank))
    receive_exactly(connection, len(WELCOME))


def attack(where: tuple[str, int], token: str, ranks: Iterator[int], messages: int, seed: int = 0) -> int:
    """Send so many hostile messages, a third of the connections with the token, most of which are left open.

    Returns:
        The number of connections.
    """
    chance, held, sent, connections = random.Random(seed), [], 0, 0
    hostile_lines, hostile_greetings = lines(chance), greetings(chance)
    while sent < messages:
        connection = socket.create_connection(where, timeout=20)
        connections += 1
        with contextlib.suppress(ConnectionError):
            if chance.random() < 1 / 3:
                join(connection, token, next(ranks))
                pieces = hostile_lines
            else:
                pieces = hostile_greetings
            for _ in range(chance.randrange(1, _BATCH)):
                sent += 1
                connection.sendall(next(pieces))
        if chance.random() < 0.2:  # a reset in place of an orderly end
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        held = [*held[-600:], connection]
    return connections


def meets(where: tuple[str, int], token: str, rank: int) -> bool:
    """Whether an agent can report to the server, while the hostile peers hold their connections."""
    with socket.create_connection(where, timeout=20) as connection:
        join(connection, token, rank)
        connection.sendall(encode(beat="S"))
        return receive_exactly(connection, len(WELCOME)) == WELCOME


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve(world_size: int) -> tuple[int, tuple[str, int], str]:
    """A server in a process of its own, with few descriptors; its pid, its address, and its token."""
    listening, where = endpoint.listen_at("127.0.0.1")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
            selector = selectors.DefaultSelector()
            server = AgentServer((listening, where), world_size, selector)
            os.write(writer, server.token.encode())
            while True:
                for key, _ in selector.select(0.25):
                    key.data()
                server.drop_old()
        finally:
            traceback.print_exc()
            os._exit(1)
    listening.close()
    os.close(writer)
    address, _, port = where.rpartition(":")
    with os.fdopen(reader) as pipe:
        return pid, (address, int(port)), pipe.read(32)


@contextlib.contextmanager
def served(world_size: int) -> Iterator[tuple[int, tuple[str, int], str]]:
    """The same, until the end of the context; it has to be alive then."""
    pid, where, token = serve(world_size)
    try:
        yield pid, where, token
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the server has ended"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def besiege(messages: int) -> dict[str, float]:
    """Attack a server; what that took, and the server's memory in bytes, after a warm-up and at the end."""
    world_size = 2 * messages + 2_000
    ranks = iter(range(1, world_size))
    with served(world_size) as (pid, where, token):
        attack(where, token, ranks, 1_000, seed=1)
        before, began = _resident(pid), time.monotonic()
        connections = attack(where, token, ranks, messages)
        seconds, after = time.monotonic() - began, _resident(pid)
        assert meets(where, token, 0)
    return {"connections": connections, "seconds": seconds, "before": before, "after": after}


if __name__ == "__main__":
    found = besiege(int(sys.argv[1]))
    print(
        f"{sys.argv[1]} messages on {found['connections']} connections in {found['seconds']:.0f} s; memory of the "
        f"server {found['before'] / 2**20:.1f} MB before, {found['after'] / 2**20:.1f} MB after"
    )
