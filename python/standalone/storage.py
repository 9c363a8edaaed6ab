"""What a host's folders are like before anything is put into them: room, permissions, and whether hosts share them.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import secrets
import sys
import time
from pathlib import Path

_MARK = ".sdtune-mark-"


def nearest(path: str) -> str:
    """A folder, or the closest of its parents that exists and may be entered."""
    folder = os.path.abspath(path)  # noqa: PTH100 - Path.exists raises where a folder may not be entered
    while not os.path.isdir(folder):  # noqa: PTH112
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def look(path: str) -> dict[str, object]:
    """What a folder is like, or would be like once it is made.

    Returns:
        ``at``: the folder that exists; ``free_mb``; ``read_only`` and ``noexec``: how its file system is mounted;
        ``writable``: whether this user may make files in it, by its permissions.
    """
    at = nearest(path)
    system = os.statvfs(at)
    return {
        "at": at,
        "free_mb": system.f_bavail * system.f_frsize >> 20,
        "read_only": bool(system.f_flag & os.ST_RDONLY),
        "noexec": bool(system.f_flag & os.ST_NOEXEC),
        "writable": os.access(at, os.W_OK | os.X_OK),
    }


def mark(path: str, seconds: float) -> dict[str, str]:
    """Write a file that other hosts look for. If nobody removes it, a process in the background does so in the end.

    Args:
        path: the folder, or where it would be made.
        seconds: how long the file stays at most; 0: none is written.

    Returns:
        ``mark``: its path; empty if there is none, and then ``error`` says why.
    """
    if seconds <= 0:
        return {"mark": "", "error": ""}
    file = Path(nearest(path)) / f"{_MARK}{secrets.token_hex(8)}"
    try:
        with file.open("xb") as opened:
            opened.write(b"sdtune looks for hosts that share this folder\n")
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):  # the file may be there, on a full disk
            file.unlink()
        return {"mark": "", "error": f"{error.filename or file.parent}: {os.strerror(error.errno or 0)}"}
    if os.fork() == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        end = time.monotonic() + seconds
        while time.monotonic() < end and file.exists():
            time.sleep(0.5)
        file.unlink(missing_ok=True)
        os._exit(0)
    return {"mark": str(file), "error": ""}


def become(user: str) -> None:
    """Take on the rights of a user of this host, which takes root."""
    account = pwd.getpwnam(user)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def parser() -> argparse.ArgumentParser:
    """The subcommands."""
    top = argparse.ArgumentParser(prog="storage.py", description="What a host's folders are like; answers are JSON.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "describe folders, and leave a mark in the first one, or where it would be made"
    command = commands.add_parser("look", help=text, description=text)
    command.add_argument("--user", help="look with the rights of this user; only root can")
    command.add_argument("seconds", type=float, metavar="SECONDS", help="the mark is removed after so long")
    command.add_argument("folders", nargs="+", metavar="FOLDER")
    text = "which of these files exist: marks of other hosts, where they share the folder with this one"
    command = commands.add_parser("seen", help=text, description=text)
    command.add_argument("marks", nargs="*", metavar="NAME=MARK")
    text = "remove a mark, and with it the process that would do so later"
    command = commands.add_parser("remove", help=text, description=text)
    command.add_argument("mark", metavar="MARK")
    return top


def main(argv: list[str]) -> None:
    """Do what the command line says."""
    options = parser().parse_args(argv)
    if options.command == "seen":
        pairs = [text.partition("=")[::2] for text in options.marks]
        print(json.dumps([name for name, path in pairs if os.path.lexists(path)]))
        return
    if options.command == "remove":
        Path(options.mark).unlink(missing_ok=True)
        return
    if options.user and os.geteuid() == 0:
        become(options.user)
    folders = {path: look(path) for path in options.folders}
    print(json.dumps({"folders": folders, **mark(options.folders[0], options.seconds)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
