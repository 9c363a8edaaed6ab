"""Atomic writing and file locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdtune.files import hold_lock, write_atomically
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
