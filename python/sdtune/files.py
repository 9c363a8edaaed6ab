"""Files and folders: replaced as a whole, so that a reader or a crash sees the old or the new one; and file locks.

To ask whether a lock is held: :func:`standalone.run_state.is_locked`.
"""

import codecs
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdtune.errors import BadInput


def nearest_folder(path: Path) -> Path:
    """``path``, or the closest of its parents that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def is_writable(folder: Path) -> bool:
    """Whether this user may make files in ``folder``, going by its permissions."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def read_text(path: Path) -> str:
    """The text of a file that a user wrote: UTF-8, with or without a byte order mark, which is no part of the text.

    Raises:
        BadInput: the file cannot be read, or has another encoding; the message names both.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})") from None
    remedy = f"save {path.name} as UTF-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadInput(f"{path} is encoded in UTF-16; {remedy}")
    if b"\0" in data:
        raise BadInput(f"{path} holds zero bytes: it is no text, or encoded in UTF-16; {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path} is not encoded in UTF-8 (byte 0x{data[error.start]:02x} in line {line}), but probably in Latin-1 "
            f"or Windows-1252; {remedy}"
        ) from None


def follow_mode(folder: Path) -> None:
    """Let whatever this process writes from now on be readable by those who may enter ``folder``, and by no others.

    A folder that does not exist yet will be its owner's alone.
    """
    os.umask(0o777 & ~folder.stat().st_mode if folder.is_dir() else 0o077)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file: a reader, or the state after a crash, has the old text or the new one.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def replace_folder(new: Path, target: Path) -> None:
    """Rename the finished folder ``new`` to ``target``, and remove what was there."""
    old = target.with_name(f".{target.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    new.rename(target)
    if old.exists():
        shutil.rmtree(old)


@contextmanager
def hold_lock(path: Path, *, timeout: float | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created when it does not exist and is not removed.

    The Linux kernel releases the lock when this process ends, however it ends. Processes that this one starts do not
    inherit it.
    Other users cannot open the file, and so cannot hold the lock.

    Args:
        path: the lock file.
        timeout: seconds to try; None: wait until the lock is free. Use at least one second, because
            :func:`standalone.run_state.is_locked` holds the lock for a moment.

    Raises:
        BlockingIOError: another process has held the lock for all of the timeout.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)  # one of an earlier version
        if timeout is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _try_lock(descriptor, time.monotonic() + timeout)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
        else:
            return
