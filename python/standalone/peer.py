"""One host's part in the test of the network and the clocks, which the role preflight makes.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import socket
import sys
import threading
import time

_PATIENCE = 5  # seconds for a connection, and for the answer
# Several packets of any size, so full ones are among them. Where switches pass only smaller ones, these are lost.
_BULK = 1 << 16


def _open(address: str) -> socket.socket:
    """Listen at an address of this host, on a port that the Linux kernel chooses; ends with the reason if it cannot."""
    try:
        server = socket.create_server((address, 0))
    except OSError as error:
        number = error.errno or 0  # that of a name that has no address is negative
        sys.exit("no IPv4 address of it is known there" if number < 0 else os.strerror(number))
    own = server.getsockname()[0]
    if own != address and ipaddress.ip_address(own).is_loopback:
        sys.exit(f"the name leads to {own} there, as /etc/hosts or DNS says, and other hosts do not reach that")
    return server


def _receive(connection: socket.socket, size: int) -> None:
    """Read so many bytes.

    Raises:
        OSError: they do not arrive in time.
    """
    while size > 0:
        chunk = connection.recv(size)
        if not chunk:
            raise ConnectionError("the connection was closed")
        size -= len(chunk)


def _answer(connection: socket.socket) -> None:
    """Send the time, then take many bytes and send as many back; a peer that only wants the time goes before."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_PATIENCE)
        connection.sendall(b"%f\n" % time.time())
        _receive(connection, _BULK)
        connection.sendall(bytes(_BULK))


def listen(address: str, seconds: float) -> None:
    """Answer every connection with this host's time, from the background, for ``seconds``; prints the port first."""
    server = _open(address)
    print(server.getsockname()[1], flush=True)
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        with contextlib.suppress(OSError):  # nobody connected in time, or the other end closed at once
            connection, _ = server.accept()
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _full_packets_lost(connection: socket.socket) -> str:
    """Send many bytes and take as many; why that fails, or nothing."""
    try:
        connection.sendall(bytes(_BULK))
        _receive(connection, _BULK)
    except OSError as error:
        return str(error)
    return ""


def ask(address: str, port: int) -> dict[str, float | str]:
    """How far a listening host's clock is ahead of ours, and whether full packets pass in both directions.

    Returns:
        ``{"skew": seconds}``, as precise as the round trip is short, or ``{"error": why}``; with ``packets``, the
        reason, if a few bytes pass and many do not.
    """
    try:
        before = time.time()
        with socket.create_connection((address, port), timeout=_PATIENCE) as connection:
            connection.settimeout(_PATIENCE)
            theirs = float(connection.recv(64))
            found: dict[str, float | str] = {"skew": round(theirs - (before + time.time()) / 2, 3)}
            if lost := _full_packets_lost(connection):
                found["packets"] = lost
            return found
    except (OSError, ValueError) as error:
        return {"error": str(error) or "no answer"}


def connect(peers: list[str]) -> dict[str, dict[str, float | str]]:
    """Ask each ``NAME=ADDRESS:PORT`` in turn; at once would not be faster, and less precise on busy hosts."""
    found = {}
    for peer in peers:
        name, _, rest = peer.partition("=")
        address, _, port = rest.rpartition(":")
        found[name] = ask(address, int(port))
    return found


def parser() -> argparse.ArgumentParser:
    """The subcommands."""
    top = argparse.ArgumentParser(prog="peer.py", description="Test the network and the clocks between two hosts.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "answer every connection with the time, in the background; print the port"
    command = commands.add_parser("listen", help=text, description=text)
    command.add_argument("address", metavar="ADDRESS")
    command.add_argument("seconds", type=float, metavar="SECONDS")
    text = 'ask listeners; print {"NAME": {"skew": seconds}} or {"NAME": {"error": why}} for each'
    command = commands.add_parser("connect", help=text, description=text)
    command.add_argument("peers", nargs="*", metavar="NAME=ADDRESS:PORT")
    return top


def main(argv: list[str]) -> None:
    """Do what the command line says."""
    options = parser().parse_args(argv)
    if options.command == "listen":
        listen(options.address, options.seconds)
    else:
        print(json.dumps(connect(options.peers)))


if __name__ == "__main__":
    main(sys.argv[1:])
