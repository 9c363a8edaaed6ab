"""Put the launch files of a run in place on one host.

Ansible writes the files of a launch into ``.staged-<ID>`` of the run folder, and nothing of the run changes. Whoever
holds the run's lock then puts them in place: so a run keeps the files that it was started with, whoever calls.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
import time
from pathlib import Path

SUPERVISOR_LOCK = ".supervisor.lock"
LAUNCH_LOCK = ".lock"
FINISHED = "finished.json"
PLACED = ".placed"
"""File of the run folder: the call whose files are in place."""
_OLD = 86_400  # seconds after which what a call has left behind, because it was killed, is removed


def staged(run: Path, call: str) -> Path:
    """The folder with the files that a call has staged."""
    return run / f".staged-{call}"


def place(run: Path, call: str) -> list[str]:
    """Replace the launch files by those that a call has staged, each as a whole, and remove the logs of earlier ranks.

    Done once for each run folder, which hosts may share.

    Returns:
        Names of the files that are different now.

    Raises:
        FileNotFoundError: nothing is staged under this name.
    """
    folder, placed = staged(run, call), run / PLACED
    if not folder.exists() and placed.exists() and placed.read_text(encoding="utf-8") == call:
        return []
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: nothing was staged under this name")
    changed = []
    for source in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = source.relative_to(folder)
        target = run / name
        if _same(source, target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        changed.append(str(name))
    logs = run / "logs"
    logs.mkdir(exist_ok=True)
    for log in (*logs.glob("rank-*.log"), *logs.glob("error-*.json")):
        log.unlink()
    placed.write_text(call, encoding="utf-8")
    shutil.rmtree(folder)
    for other in run.glob(".staged-*"):
        if time.time() - other.stat().st_mtime > _OLD:
            shutil.rmtree(other)
    return changed


def _same(one: Path, other: Path) -> bool:
    """Whether two files have the same content and mode."""
    try:
        return one.read_bytes() == other.read_bytes() and one.stat().st_mode == other.stat().st_mode
    except FileNotFoundError:
        return False


class TooLate(Exception):
    """The run has finished since the files were staged."""


def place_alone(run: Path, call: str) -> list[str]:
    """:func:`place`, while no run of this folder can start.

    Raises:
        BlockingIOError: one is going on.
        TooLate: one has finished since the files were staged, and what it was asked stays.
    """
    locks = []
    os.umask(0o777 & ~run.stat().st_mode)  # whoever may enter the folder may read what is in it, and nobody else
    try:
        for name in (SUPERVISOR_LOCK, LAUNCH_LOCK):
            locks.append(os.open(run / name, os.O_RDWR | os.O_CREAT, 0o644))
            fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        finished, folder = run / FINISHED, staged(run, call)
        if finished.exists() and folder.exists() and finished.stat().st_mtime > folder.stat().st_mtime:
            raise TooLate
        return place(run, call)
    finally:
        for lock in locks:
            os.close(lock)


def main(argv: list[str]) -> None:
    """Place the files; print the names of those that changed, as JSON."""
    parser = argparse.ArgumentParser(prog="launch_files.py", description="Put staged launch files in place.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("call", metavar="ID", help="the name under which they were staged")
    options = parser.parse_args(argv)
    try:
        print(json.dumps(place_alone(options.run, options.call)))
    except BlockingIOError:
        sys.exit(f"{options.run} is going on; its files stay as they are")
    except TooLate:
        sys.exit(f"{options.run} has finished since this call began; its files stay as they are; type the same again")


if __name__ == "__main__":
    main(sys.argv[1:])
