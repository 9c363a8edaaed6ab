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
    script(
        "ssh", 'case $5 in 10.0.0.2) echo "Warning: x" >&2; echo "Permission denied" >&2; exit 255;; esac; eval "$6"'
    )
    assert diagnose_host.failed_logins({"a": "10.0.0.1", "b": "10.0.0.2"}) == {
        "b": {"address": "10.0.0.2", "reason": "Refused"}
    }


@pytest.mark.parametrize(
    ("code", "out", "err", "told"),
    [
        (0, "sdtune\n", "Welcome to the cluster\n", ""),
        (0, "Welcome!\nsdtune\n", "", "the shell there prints 'Welcome!' where it runs a command"),
        (0, "", "", "the shell there does not run commands"),
        (1, "This account is currently not available.\n", "", "This account is currently not available."),
        (1, "", "", "the login ended with code 1 and without a word"),
    ],
    ids=["banner", "printing", "silent", "nologin", "false"],
)
def test_what_a_login_prints(code, out, err, told):
    """rsync and MPI read it, so nothing but the answer may come; a banner goes another way."""
    said = diagnose_host.login_problem(code, out, err)
    assert said.startswith(told)
    assert bool(said) == bool(told)
