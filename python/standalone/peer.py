"""One host's part in the test of the network and the clocks, which the role preflight makes.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time

_PATIENCE = 5  # seconds for a connection, and for the answer


def listen(address: str, seconds: float) -> None:
    """Answer every connection with this host's time, from the background, for ``seconds``; prints the port first."""
    server = socket.create_server((address, 0))
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
        try:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"%f" % time.time())
        except OSError:  # nobody connected in time, or the other end closed at once
            pass


def clock_skew(address: str, port: int) -> dict[str, float | str]:
    """How far a listening host's clock is ahead of ours.

    Returns:
        ``{"skew": seconds}``, as precise as the round trip is short, or ``{"error": why}``.
    """
    try:
        before = time.time()
        with socket.create_connection((address, port), timeout=_PATIENCE) as connection:
            connection.settimeout(_PATIENCE)
            theirs = float(connection.recv(64))
        return {"skew": round(theirs - (before + time.time()) / 2, 3)}
    except (OSError, ValueError) as error:
        return {"error": str(error) or "no answer"}


def connect(peers: list[str]) -> dict[str, dict[str, float | str]]:
    """Ask each ``NAME=ADDRESS:PORT`` in turn; at once would not be faster, and less precise on busy hosts."""
    found = {}
    for peer in peers:
        name, _, rest = peer.partition("=")
        address, _, port = rest.rpartition(":")
        found[name] = clock_skew(address, int(port))
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
