"""What module diagnose_host answers of an environment, of files, and of logins. Fakes: python and ssh are scripts."""

import json

import pytest

from plugins.modules import diagnose_host


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write a program of that name, in a folder that is first in PATH and is an environment's bin."""
    folder = tmp_path / "env/bin"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(name: str, text: str) -> str:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(tmp_path / "env")

    return write


@pytest.mark.parametrize(
    ("text", "imports", "error"),
    [
        ("exit 0", {}, ""),
        (f"echo '{json.dumps({'failed': {'torch': 'ImportError: x'}})}'; exit 1", {"torch": "ImportError: x"}, ""),
        ("echo Killed >&2; exit 137", {}, "Killed"),
        ("exit 3", {}, "it ended with code 3"),
    ],
)
def test_imports(script, text, imports, error):
    assert diagnose_host.try_imports(script("python", text), ["torch"], {}) == {
        "imports": imports,
        "imports_error": error,
    }


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "there").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    paths = [str(tmp_path / name) for name in ("there", "dangling", "gone")]
    assert diagnose_host.unreadable(paths) == paths[1:]


def test_logins_are_tried_at_the_same_time_and_the_reason_is_the_last_line(script):
    script("ssh", 'case $5 in 10.0.0.2) echo "Warning: x"; echo "Permission denied"; exit 255;; esac')
    assert diagnose_host.failed_logins({"a": "10.0.0.1", "b": "10.0.0.2"}) == {
        "b": {"address": "10.0.0.2", "reason": "Permission denied"}
    }
