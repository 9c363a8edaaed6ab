"""Files and folders, written so that a reader or a crash sees the old or the new one and nothing between."""

import os
import shutil
from pathlib import Path


def nearest_folder(path: Path) -> Path:
    """``path``, or the closest of its parents that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def is_writable(folder: Path) -> bool:
    """Whether this user may make files in ``folder``, going by its permissions."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old one or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder ``new`` in the place of ``target``."""
    old = target.with_name(f".{target.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    new.rename(target)
    if old.exists():
        shutil.rmtree(old)
