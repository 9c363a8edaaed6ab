"""A host's end of action plugin push_folder: takes the files of a folder over whatever connection Ansible has.

Needs Python 3.9 or newer; the host's own Python will do. Files are staged below ``FOLDER/.incoming``, each under its
SHA-256, and replace those of the folder only once all are there and right. What an interrupted transfer staged is kept,
and continued by the next one.

The exit code is 2 when the folder cannot take the files; standard error then says why, in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, BinaryIO

STAGING = ".incoming"
_CHUNK = 1 << 20


class Refused(Exception):
    """Why the folder cannot take the files."""


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def staged(folder: Path) -> dict[str, Any]:
    """What an earlier transfer left, ``{"files": {SHA-256: [bytes, SHA-256 of these]}}``, and the bytes ``free``."""
    files = sorted((folder / STAGING).glob("*")) if (folder / STAGING).is_dir() else []
    parent = folder
    while not parent.exists():
        parent = parent.parent
    return {
        "files": {path.name: [path.stat().st_size, digest(path)] for path in files},
        "free": shutil.disk_usage(parent).free,
    }


def make_folder(path: Path, mode: int) -> None:
    """Make a folder with this mode, whatever the umask is, with those of its parents that do not exist."""
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
        path.chmod(mode)


def stage(folder: Path, parts: list[dict[str, Any]], source: BinaryIO) -> None:
    """Append parts of files to what is staged.

    Args:
        folder: the folder that the files are for.
        parts: in the order of the bytes: ``name``, ``sha256`` and ``size`` of the file, ``offset`` and ``length``.
        source: the bytes of all parts.

    Raises:
        Refused: the stream ended early, or a complete file has another checksum.
    """
    for part in parts:
        path = folder / STAGING / part["sha256"]
        with path.open("ab") as file:
            file.truncate(part["offset"])
            left = part["length"]
            while left:
                chunk = source.read(min(left, _CHUNK))
                if not chunk:
                    raise Refused("the connection ended in the middle of a file")
                file.write(chunk)
                left -= len(chunk)
        if part["offset"] + part["length"] == part["size"] and digest(path) != part["sha256"]:
            path.unlink()
            raise Refused(f"{part['name']} arrived damaged; the source may have changed meanwhile")


def clear(path: Path) -> None:
    """Remove a file, a link, or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def place(folder: Path, files: dict[str, str], remove: list[str], modes: tuple[int, int]) -> None:
    """Move staged files to their names, and remove what is foreign.

    Args:
        folder: the folder.
        files: ``{path below the folder: SHA-256}`` of the files that were staged.
        remove: paths of foreign files and of folders that the source does not have.
        modes: of files and of folders.
    """
    for name in remove:
        with contextlib.suppress(FileNotFoundError):
            clear(folder / name)
    for name, checksum in files.items():
        target = folder / name
        for parent in reversed(target.relative_to(folder).parents[:-1]):
            above = folder / parent
            if above.is_symlink() or (above.exists() and not above.is_dir()):
                above.unlink()
            make_folder(above, modes[1])
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        waiting = folder / STAGING / checksum
        draft = folder / STAGING / f"{checksum}.copy"  # other paths may have the same content
        shutil.copyfile(waiting, draft) if list(files.values()).count(checksum) > 1 else waiting.rename(draft)
        draft.chmod(modes[0])
        draft.replace(target)
    if (folder / STAGING).is_dir():
        shutil.rmtree(folder / STAGING)


def receive(folder: Path, source: BinaryIO) -> None:
    """Do what the first line of the stream asks for; the bytes of the parts follow it."""
    asked = json.loads(source.readline())
    file_mode, folder_mode = (int(mode, 8) for mode in asked["modes"])
    make_folder(folder, folder_mode)
    (folder / STAGING).mkdir(mode=0o700, exist_ok=True)
    stage(folder, asked["parts"], source)
    if asked["place"] is not None:
        place(folder, asked["place"], asked["remove"], (file_mode, folder_mode))


def main(argv: list[str], source: BinaryIO) -> None:
    """Do what the command line says."""
    top = argparse.ArgumentParser(prog="receive_folder.py", description="Take the files of a folder.")
    top.add_argument("command", choices=["staged", "receive"])
    top.add_argument("folder", type=Path, metavar="FOLDER")
    options = top.parse_args(argv)
    try:
        if options.command == "staged":
            print(json.dumps(staged(options.folder)))
        else:
            receive(options.folder, source)
    except Refused as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or options.folder}: {os.strerror(error.errno or 0)}")


if __name__ == "__main__":
    main(sys.argv[1:], sys.stdin.buffer)
