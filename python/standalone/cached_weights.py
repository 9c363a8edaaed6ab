"""The record beside each file of converted weights: its size, its time and its SHA-256, written when it is made.

Needs Python 3.9 or newer; the host's own Python will do. Training compares size and time, which costs nothing.
provision.yml and diagnose.yml run this file over its standard input, and compare the content too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

_PART = 1 << 20


def record_of(file: Path) -> Path:
    """Where the record of a file is."""
    return file.with_name(f"{file.name}.json")


def sha256(file: Path) -> str:
    """SHA-256 of its content, in hexadecimal; of a file in memory, a second for 1 to 2 GB."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def write_record(file: Path, target: Path) -> None:
    """Record ``file``, which is about to be renamed to ``target``. Its time becomes one of whole seconds."""
    seconds = int(file.stat().st_mtime)
    os.utime(file, (seconds, seconds))  # which every file system keeps
    text = json.dumps({"size": file.stat().st_size, "time": seconds, "sha256": sha256(file)})
    temporary = record_of(target).with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(record_of(target))
    finally:
        temporary.unlink(missing_ok=True)


def problem(file: Path, *, content: bool = False) -> str:
    """Why a file is not the one that was made; empty if it is.

    Args:
        file: there, or not.
        content: compare the content as well.
    """
    try:
        record = json.loads(record_of(file).read_text())
        size, seconds, digest = record["size"], record["time"], record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no record of what was written"
    status = file.stat()
    if status.st_size != size:
        return f"it has {status.st_size} bytes, and {size} were written"
    if content:
        return "" if sha256(file) == digest else "its content is not what was written"
    return "" if status.st_mtime == seconds else "it changed after it was written"


def problems(folder: Path) -> dict[str, str]:
    """``{name: why}`` of the files of a folder that are not what was written."""
    found = {file.name: problem(file, content=True) for file in sorted(folder.glob("*.safetensors"))}
    return {name: why for name, why in found.items() if why}


def main(argv: list[str]) -> None:
    """Print a line for each problem of a folder; ``remove`` removes those files, which the next run makes again."""
    parser = argparse.ArgumentParser(prog="cached_weights.py", description="Compare converted weights with a record.")
    parser.add_argument("command", choices=["look", "remove"])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    options = parser.parse_args(argv)
    try:
        found = problems(options.folder)
        if options.command == "remove":
            for name in found:
                (options.folder / name).unlink()
                record_of(options.folder / name).unlink(missing_ok=True)
    except OSError as error:
        sys.exit(f"error: {options.folder}: {os.strerror(error.errno or 0)}")
    print("".join(f"{name} ({why})\n" for name, why in found.items()), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
