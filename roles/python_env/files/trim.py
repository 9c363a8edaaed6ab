"""Remove what no program of sdtune reads from the packages of an environment, and keep equal large files once.

    python - JSON <trim.py      with the Python of the environment; JSON: {"torch": ["torch/include/*"], ...}

Per package: patterns of fnmatch, where * also stands for /. A path is relative to site-packages, or to the environment
where it lies elsewhere. What is removed leaves RECORD too, so that a comparison with the records finds all that they
name. Wheels hold no links, so libraries come under up to four names; those become hard links. Prints the MB freed.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import os
import re
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

LARGE = 1_000_000
"""Bytes from which equal files are kept once. Smaller ones, such as lists of certificates, may be edited by people."""


def normalized(name: str) -> str:
    """A package's name as PEP 503 compares names."""
    return re.sub("[-_.]+", "-", name).lower()


def rows_of(record: Path) -> list[list[str]]:
    """The lines of a RECORD: path, checksum, size; none of a damaged one, which the comparison of files reports."""
    rows = list(csv.reader(io.StringIO(record.read_text(encoding="utf-8"))))
    return rows if all(len(row) == 3 for row in rows) else []


def spelled(site: Path, prefix: Path, path: str) -> str:
    """A path of RECORD as patterns name it."""
    full = Path(os.path.normpath(site / path))
    base = site if full.is_relative_to(site) else prefix
    return str(full.relative_to(base)) if full.is_relative_to(base) else str(full)


def remove_empty(folder: Path, prefix: Path) -> None:
    """Remove a folder of the environment at ``prefix`` if it is empty, then those above it that became so."""
    while folder.is_relative_to(prefix) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def remove(site: Path, prefix: Path, record: Path, patterns: Sequence[str]) -> int:
    """Remove the files of one package that match and lie in the environment; the bytes that they had.

    Raises:
        OSError: a file cannot be removed.
    """
    kept, gone = [], []
    for row in rows_of(record):
        path = spelled(site, prefix, row[0])
        matches = not Path(path).is_absolute() and any(fnmatch.fnmatchcase(path, each) for each in patterns)
        (gone if matches else kept).append(row)
    if not gone:
        return 0
    freed = 0
    folders = set()
    for path, *_ in gone:
        file = Path(os.path.normpath(site / path))
        folders.add(file.parent.resolve())  # a link to a folder is no folder that could be removed
        if file.exists():
            freed += file.stat().st_size if file.stat().st_nlink == 1 else 0
            file.unlink()
    for folder in folders:
        remove_empty(folder, prefix.resolve())
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(kept)
    fresh = record.with_name("RECORD.new")
    fresh.write_text(text.getvalue(), encoding="utf-8")
    fresh.replace(record)
    return freed


def link_equal(site: Path, records: Sequence[Path]) -> int:
    """Make one file of large files with the same checksum in the records; the bytes that the others had."""
    first: dict[str, Path] = {}
    freed = 0
    for record in records:
        for path, checksum, size in rows_of(record):
            file = Path(os.path.normpath(site / path))
            if not checksum or not size or int(size) < LARGE or not file.is_file():
                continue
            kept = first.setdefault(checksum, file)
            if kept.samefile(file) or kept.stat().st_mode != file.stat().st_mode:
                continue
            fresh = file.with_name(f".{file.name}.new")
            fresh.unlink(missing_ok=True)  # of a call that was interrupted
            fresh.hardlink_to(kept)
            fresh.replace(file)
            freed += int(size)
    return freed


def trim(site: Path, prefix: Path, unneeded: Mapping[str, Sequence[str]]) -> int:
    """Do both in the environment at ``prefix``, whose packages are in ``site``; the bytes that were freed."""
    wanted = {normalized(name): patterns for name, patterns in unneeded.items()}
    records = sorted(site.glob("*.dist-info/RECORD"))
    freed = 0
    for record in records:
        patterns = wanted.get(normalized(record.parent.name.split("-")[0]), ())
        freed += remove(site, prefix, record, patterns) if patterns else 0
    return freed + link_equal(site, records)


if __name__ == "__main__":
    bytes_freed = trim(Path(sysconfig.get_path("purelib")), Path(sys.prefix), json.loads(sys.argv[1]))
    print(f"{bytes_freed / 1e6:.0f}")
