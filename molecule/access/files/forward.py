"""NAT in small: pass every connection to a port of this host on to port 22 of another.

Usage: forward.py PORT ADDRESS
"""

import socket
import sys
import threading


def pipe(source: socket.socket, sink: socket.socket) -> None:
    """Pass bytes on until the source ends."""
    while data := source.recv(1 << 16):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    with socket.create_server(("", int(sys.argv[1]))) as server:
        while True:
            near, _ = server.accept()
            far = socket.create_connection((sys.argv[2], 22))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pipe, args=pair, daemon=True).start()
