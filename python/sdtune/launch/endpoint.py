"""Where supervisor and agents meet: a socket in the run folder if both are on one host, else a TCP port."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

_FOLDER, _NAME = ".agents", "socket"
_IN_RUN_FOLDER = f"{_FOLDER}/{_NAME}"


def listen(run: Path, addresses: Sequence[str]) -> tuple[socket.socket, str]:
    """Listen where the agents of a run can reach this host, which is the first of ``addresses``.

    Returns:
        The socket, and where it is, for :func:`connect`.
    """
    if len(addresses) > 1:
        return listen_at(addresses[0])
    try:
        return listen_in(run)
    except OSError as error:  # some network file systems have no sockets
        print(f"{run} takes no socket ({error.strerror or error}): the agents connect to 127.0.0.1", flush=True)
        return listen_at("127.0.0.1")


def listen_in(run: Path) -> tuple[socket.socket, str]:
    """Listen at a Unix socket, in a folder of its own that only this user may enter.

    Returns:
        The socket, and where it is, for :func:`connect`.
    """
    folder = run / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    (folder / _NAME).unlink(missing_ok=True)  # of a supervisor that was killed
    server = socket.socket(socket.AF_UNIX)
    with _Nearby(folder) as path:
        server.bind(path)
    server.listen()
    return server, _IN_RUN_FOLDER


def listen_at(address: str) -> tuple[socket.socket, str]:
    """Listen at a free TCP port of an address of this host, IPv4 or IPv6.

    Returns:
        The socket, and where it is, for :func:`connect`.
    """
    family = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0][0]
    server = socket.create_server((address, 0), family=family)
    return server, "{}:{}".format(*server.getsockname()[:2])


def connect(run: Path, where: str, timeout: float) -> socket.socket:
    """Connect to the supervisor of a run.

    Args:
        run: the run folder on this host.
        where: what the supervisor got from :func:`listen_in` or :func:`listen_at`.
        timeout: seconds, for this and for all that is sent or received.
    """
    if where == _IN_RUN_FOLDER:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        with _Nearby(run / _FOLDER) as path:
            connection.connect(path)
        return connection
    address, _, port = where.rpartition(":")
    connection = socket.create_connection((address, int(port)), timeout=timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class _Nearby:
    """A short path of the socket in a folder: the Linux kernel takes 107 bytes, and run folders may be deep."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> str:
        self._descriptor = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._descriptor}/{_NAME}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
