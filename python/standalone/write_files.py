"""A host's end of action plugin write_files: writes small text files, each as a whole, and makes their folders.

Needs Python 3.9 or newer; the host's own Python will do. Standard input is JSON::

    {"folders": {PATH: {"above": [PATH], "files": {NAME: TEXT}, "scripts": {NAME: TEXT}}},
     "mode": "0600", "folder_mode": "0700"}

A name may contain folders. Folders, those ``above`` too, and scripts get the second mode, whatever the umask is. Prints
a JSON list of the paths that were not as they are now. With --check, nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any


def has_mode(path: Path, mode: int) -> bool:
    """Whether a path has this mode; a path that does not exist has none."""
    try:
        return stat.S_IMODE(path.stat().st_mode) == mode
    except FileNotFoundError:
        return False


def make_folder(path: Path, mode: int, check: bool) -> bool:
    """Make a folder, and those of its parents that do not exist, with this mode; whether that changed anything."""
    if has_mode(path, mode):
        return False
    if not check:
        for folder in [*reversed(path.parents), path]:
            if not folder.is_dir():
                folder.mkdir()
                folder.chmod(mode)
        path.chmod(mode)
    return True


def write_file(path: Path, text: str, mode: int, check: bool) -> bool:
    """Replace a file by this text, in one step for whoever reads it; whether that changed anything."""
    data = text.encode()
    if has_mode(path, mode) and path.read_bytes() == data:
        return False
    if not check:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(data)
        draft.chmod(mode)
        draft.replace(path)
    return True


def write_folder(folder: Path, asked: dict[str, Any], modes: tuple[int, int], check: bool) -> list[Path]:
    """Write the files of one folder; the paths that were changed."""
    mode, folder_mode = modes
    files = {name: (text, mode) for name, text in asked["files"].items()}
    files.update((name, (text, folder_mode)) for name, text in asked["scripts"].items())
    folders = dict.fromkeys([*map(Path, asked["above"]), folder, *sorted({(folder / name).parent for name in files})])
    changed = [path for path in folders if make_folder(path, folder_mode, check)]
    return changed + [folder / name for name, wanted in files.items() if write_file(folder / name, *wanted, check)]


def write(asked: dict[str, Any], check: bool) -> list[str]:
    """Do what standard input asks for; the paths that were changed."""
    modes = int(asked["mode"], 8), int(asked["folder_mode"], 8)
    changed = [write_folder(Path(folder), of_it, modes, check) for folder, of_it in asked["folders"].items()]
    return [str(path) for paths in changed for path in paths]


def main() -> None:
    """Read standard input, write, and say what was changed."""
    parser = argparse.ArgumentParser(prog="write_files.py", description="Write the files that standard input names.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    try:
        print(json.dumps(write(json.load(sys.stdin), check)))
    except OSError as error:
        sys.exit(f"error: {error.filename}: {os.strerror(error.errno or 0)}")


if __name__ == "__main__":
    main()
