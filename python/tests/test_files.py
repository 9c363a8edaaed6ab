"""Atomic writing and file locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdtune.files import follow_mode, hold_lock, write_atomically
from standalone.run_state import is_locked


def test_a_lock_excludes_others_and_ends_with_its_holder(tmp_path):
    lock = tmp_path / "lock"
    assert not is_locked(lock)
    program = f"from sdtune.files import hold_lock\nfrom pathlib import Path\nwith hold_lock(Path({str(lock)!r})):\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", program + " print('held', flush=True)\n input()"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert holder.stdout.readline() == b"held\n"
    assert is_locked(lock)
    with pytest.raises(BlockingIOError), hold_lock(lock, timeout=0.1):
        pass
    holder.kill()
    holder.wait()
    assert not is_locked(lock)
    with hold_lock(lock, timeout=0.1):
        assert is_locked(lock)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nobody_else_may_open_a_lock(tmp_path):
    """Whoever can open the file can hold the lock, and so stop the run."""
    lock = tmp_path / "lock"
    lock.touch(mode=0o666)
    with hold_lock(lock):
        assert lock.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("mode", "expected"), [(0o700, 0o600), (0o750, 0o640), (0o755, 0o644), (None, 0o600)])
@pytest.mark.parametrize("before", [0o077, 0o000])
def test_files_follow_the_mode_of_their_folder(tmp_path, mode, expected, before):
    """Whatever the umask was; a folder that does not exist yet will be private."""
    folder = tmp_path / "run"
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    inherited = os.umask(before)
    try:
        follow_mode(folder)
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(inherited)
    assert (tmp_path / "file").stat().st_mode & 0o777 == expected
