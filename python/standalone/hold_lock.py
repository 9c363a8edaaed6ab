"""A host's end of action plugin hold_lock: one ansible-playbook at a time may change the folder that it protects.

Needs Python 3.9 or newer; the host's own Python will do. The lock is a file that says who holds it, and until when: its
holder renews it while the call lasts. Nothing runs here in between, and nothing has to be removed after a crash on
either side. Its name is made here, as only the host knows which spellings of a path lead to the same folder.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_BUSY_SECONDS = 5.0  # how long the file of the lock may be in use by another process


def clock() -> tuple[str, float]:
    """Which boot of the host it is, and seconds since then, suspended or not; setting the clock does not change it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, time.clock_gettime(time.CLOCK_BOOTTIME)


def lock_file(place: str, folder: str) -> Path:
    """The file of the lock on a folder, below ``place``; the folder need not exist yet.

    It is the same for every path to the folder: with a slash at the end, with ``..``, below ``~USER``, or over a
    symbolic link.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(Path(folder).expanduser()))).hexdigest()
    return Path(place).expanduser() / f".sdtune-{digest[:16]}.lock"


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def opened(path: Path) -> Iterator[TextIO | None]:
    """The file for this process alone; nothing if another process keeps it, as a call of an older version does."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    yield None
                    return
                time.sleep(0.05)
                continue
            if _is_at(path, descriptor):  # else it was removed meanwhile
                yield file
                return


def holder(path: Path) -> dict[str, Any]:
    """Who holds the lock, or held it last, as the file says; empty where nobody does."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def held(said: dict[str, Any]) -> bool:
    """Whether the time of a holder has not run out; another boot of the host has ended it."""
    boot, now = clock()
    until = said.get("until")
    return said.get("boot_of_host") == boot and isinstance(until, (int, float)) and now < until


def take(path: Path, who: dict[str, Any], seconds: float, *, again: bool = False) -> dict[str, Any]:
    """Hold the lock for some seconds: ``{"held": whether, "by": whom}``. Who holds it knows its ``file`` from then on.

    It is refused while another holds it; ``again`` refuses it also if it was another's meanwhile, or was removed.
    """
    with opened(path) as file:
        said = holder(path)
        own = said.get("token") == who["token"]
        if file is None or (not own and (again or held(said))):
            if file is not None and not said:
                path.unlink()  # as it was: no lock
            return {"held": False, "by": said}
        who = {**who, "file": str(path)}
        boot, now = clock()
        file.write(json.dumps({**who, "boot_of_host": boot, "until": now + seconds}))
        file.truncate()
    return {"held": True, "by": who}


def look(path: Path, who: dict[str, Any]) -> dict[str, Any]:
    """Whether another may change what is protected just now: as :func:`take`, which takes nothing."""
    if path.exists():
        with opened(path) as file:
            said = holder(path)
            if file is None or (held(said) and said.get("token") != who["token"]):
                return {"held": False, "by": said}
            if not said:
                path.unlink()  # it was released meanwhile
    return {"held": True, "by": {}}


def release(path: Path, who: dict[str, Any]) -> dict[str, Any]:
    """Remove the file of this holder."""
    with opened(path) as file:
        if file is not None and holder(path).get("token", who["token"]) == who["token"]:
            path.unlink()
    return {"held": False, "by": {}}


def main(argv: list[str]) -> None:
    """Do what the command line says, and print the answer."""
    top = argparse.ArgumentParser(prog="hold_lock.py", description="Hold a lock for some seconds.")
    top.add_argument("command", choices=["take", "look", "renew", "release"])
    top.add_argument("place", metavar="FOLDER", help="where the files of locks are")
    top.add_argument("folder", metavar="PROTECTED", help="the folder that is changed")
    top.add_argument(
        "who", type=json.loads, metavar="JSON", help="the holder, with its token, and its file if it has it"
    )
    top.add_argument("seconds", type=float, metavar="SECONDS")
    options = top.parse_args(argv)
    # A holder keeps its file: the call may have removed a symbolic link on the way to the folder.
    path = Path(options.who["file"]) if "file" in options.who else lock_file(options.place, options.folder)
    try:
        if options.command == "release":
            answer = release(path, options.who)
        elif options.command == "look":
            answer = look(path, options.who)
        else:
            answer = take(path, options.who, options.seconds, again=options.command == "renew")
    except OSError as error:
        sys.exit(f"error: {path}: {os.strerror(error.errno or 0)}")
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
