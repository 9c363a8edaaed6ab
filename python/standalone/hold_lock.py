"""A host's end of action plugin hold_lock: one ansible-playbook at a time may change what it protects.

Needs Python 3.9 or newer; the host's own Python will do. The lock is a file's, held by a process in the background that
ends with the connection of the control node: nothing has to be removed after a crash on either side. The file says who
holds it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

_SECONDS = 1.0  # between two looks at the connection


def started(pid: int) -> str:
    """When a process started, in clock ticks; empty if there is none. It tells apart two processes of one number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def connection() -> int:
    """The process of sshd that this one came through; 0 if it came otherwise."""
    pid = os.getppid()
    while pid > 1:
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            return 0
        if name.startswith(("sshd", "dropbear")):
            return pid
        pid = int(rest.split()[1])
    return 0


def lock(path: Path) -> TextIO | None:
    """The locked file; nothing if another process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        file = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return file
        file.close()  # it was removed meanwhile


def holder(path: Path) -> dict[str, Any]:
    """Who holds the lock, as the file says; empty while it is being written."""
    try:
        said: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return said


def release(path: Path, token: str) -> None:
    """End the holder with this token, and remove the file."""
    said = holder(path)
    if said.get("token") != token:
        return
    file = lock(path)
    if file is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(said["holder"]), signal.SIGTERM)
        end = time.monotonic() + 5
        while file is None and time.monotonic() < end:
            time.sleep(0.05)
            file = lock(path)
    if file is not None:
        path.unlink()
        file.close()


def take(path: Path, who: dict[str, Any], watched: int) -> dict[str, Any]:
    """Hold the lock from the background while ``watched`` lives: ``{"held": whether, "by": whom}``.

    Where there is nothing to watch, as on a connection other than ssh's, nothing is kept from anybody.
    """
    if not watched:
        return {"held": True, "by": {}}
    file = lock(path)
    if file is None:
        return {"held": False, "by": holder(path)}
    ready, wrote = os.pipe()
    if os.fork():
        os.close(wrote)
        os.read(ready, 1)
        return {"held": True, "by": who}
    os.setsid()
    file.truncate(0)
    file.seek(0)
    json.dump({**who, "holder": os.getpid()}, file)
    file.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(wrote)
    since = started(watched)
    while since and started(watched) == since:
        time.sleep(_SECONDS)
    os._exit(0)


def main(argv: list[str]) -> None:
    """Do what the command line says, and print the answer."""
    top = argparse.ArgumentParser(prog="hold_lock.py", description="Hold a lock while a connection lives.")
    top.add_argument("command", choices=["take", "release"])
    top.add_argument("file", type=Path, metavar="FILE")
    top.add_argument("who", metavar="JSON", help="of the holder, with a token; to release, the token")
    top.add_argument("--watch", type=int, metavar="PID", help="end with this process, not with the connection")
    options = top.parse_args(argv)
    path = options.file.expanduser()
    try:
        if options.command == "release":
            release(path, options.who)
        else:
            print(json.dumps(take(path, json.loads(options.who), options.watch or connection())))
    except OSError as error:
        sys.exit(f"error: {path}: {os.strerror(error.errno or 0)}")


if __name__ == "__main__":
    main(sys.argv[1:])
