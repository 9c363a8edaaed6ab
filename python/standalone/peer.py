"""One host's part in the test of the network and the clocks. Runs on any Python 3, from standard input.

peer.py listen ADDRESS SECONDS       answer anyone with the time, from the background; prints the port
peer.py connect NAME=ADDRESS:PORT... print, for each, what it answered: {"NAME": {"skew": seconds}} or
                                     {"NAME": {"error": why}}
peer.py free ADDRESS PORT            say why a program cannot listen there; nothing when it can
"""

import json
import os
import socket
import sys
import time


def listen(address: str, seconds: str) -> None:
    """Bind, tell the port, go to the background, answer until the time is over."""
    server = socket.create_server((address, 0))
    print(server.getsockname()[1], flush=True)
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    end = time.monotonic() + float(seconds)
    while (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"%f" % time.time())
        except OSError:  # nobody came in time, or left at once
            pass


def ask(address: str, port: str) -> "dict[str, object]":
    """The difference between that host's clock and ours, in seconds, to the precision of the round trip."""
    try:
        before = time.time()
        with socket.create_connection((address, int(port)), timeout=5) as connection:
            connection.settimeout(5)
            theirs = float(connection.recv(64))
        return {"skew": round(theirs - (before + time.time()) / 2, 3)}
    except (OSError, ValueError) as error:
        return {"error": str(error) or "no answer"}


def connect(*peers: str) -> None:
    """Ask all, one after the other: the clocks of busy hosts are no better asked at once."""
    found = {}
    for peer in peers:
        name, _, rest = peer.partition("=")
        found[name] = ask(*rest.rsplit(":", 1))
    print(json.dumps(found))


def free(address: str, port: str) -> None:
    """Try to bind as the job will; a port in TIME_WAIT is free."""
    try:
        socket.create_server((address, int(port))).close()
    except OSError as error:
        print(os.strerror(error.errno))


if __name__ == "__main__":
    {"listen": listen, "connect": connect, "free": free}[sys.argv[1]](*sys.argv[2:])
