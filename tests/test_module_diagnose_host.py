"""What module diagnose_host answers of an environment, of files, and of logins. Fakes: python and ssh are scripts."""

import json

import pytest

from plugins import keeper
from plugins.modules import diagnose_host

PRELOAD = "ERROR: ld.so: object '/x.so' from LD_PRELOAD cannot be preloaded (cannot open shared object file): ignored."


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


def is_alive(pid):
    """Whether a process is there and no zombie."""
    return bool(keeper.started(pid))


@pytest.mark.parametrize(
    ("text", "imports", "error"),
    [
        ("exit 0", {}, ""),
        (f"echo '{json.dumps({'failed': {'torch': 'ImportError: x'}})}'; exit 1", {"torch": "ImportError: x"}, ""),
        ("echo Killed >&2; exit 137", {}, "Killed"),
        ("exit 3", {}, "it ended with code 3"),
        (f'echo "{PRELOAD}" >&2; exit 3', {}, "it ended with code 3"),
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('echo "Warning: x" >&2; echo "Permission denied" >&2; exit 255', "Permission denied"),
        ("echo welcome; echo sdtune", "the shell there prints 'welcome' where it runs a command"),
        ("exit 0", "the shell there does not run commands"),
        ("exit 3", "the login ended with code 3 and printed nothing"),
    ],
)
def test_of_several_logins_those_that_fail_are_named_with_the_reason(script, text, reason):
    script("ssh", f"case $5 in 10.0.0.2) {text};; *) echo sdtune;; esac")
    found = diagnose_host.failed_logins({"a": "10.0.0.1", "b": "10.0.0.2"})
    assert list(found) == ["b"]
    assert found["b"]["address"] == "10.0.0.2"
    assert found["b"]["reason"].startswith(reason)


def test_a_login_that_a_busy_sshd_drops_is_tried_again(script, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnose_host.time, "sleep", lambda _: None)
    dropped = "echo 'kex_exchange_identification: Connection closed by remote host' >&2; exit 255"
    script("ssh", f"echo x >> {tmp_path}/calls; [ $(wc -l < {tmp_path}/calls) = 3 ] || {{ {dropped}; }}; echo sdtune")
    assert diagnose_host.failed_logins({"a": "10.0.0.1"}) == {}


@pytest.mark.parametrize(
    "said",
    [
        "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 10.0.0.1 port 22",
        "kex_exchange_identification: Connection closed by remote host",
        "ssh_exchange_identification: read: Connection reset by peer",
        "Connection closed by 10.0.0.1 port 2222",
        "Exceeded MaxStartups",
    ],
)
def test_a_login_that_sshd_drops_again_and_again_names_max_startups(script, monkeypatch, said):
    monkeypatch.setattr(diagnose_host.time, "sleep", lambda _: None)
    script("ssh", f"echo '{said}' >&2; exit 255")
    reason = diagnose_host.failed_logins({"a": "10.0.0.1"})["a"]["reason"]
    last = said.splitlines()[-1]
    assert reason.startswith(f"sshd there dropped 4 connections before it asked who logs in ({last}), most likely")
    assert "; raise MaxStartups in /etc/ssh/sshd_config there, such as to 100:30:200, and reload sshd" in reason


def test_other_failures_of_ssh_are_not_taken_for_a_dropped_login(script):
    script("ssh", "echo 'Connection timed out' >&2; exit 255")
    assert diagnose_host.failed_logins({"a": "10.0.0.1"})["a"]["reason"] == "Connection timed out"


def test_a_login_shell_that_hangs_is_told_and_everything_is_killed(script, monkeypatch, tmp_path):
    monkeypatch.setattr(diagnose_host, "LOGIN_SECONDS", 1)
    script("ssh", f"sleep 1000 & echo $! > {tmp_path}/started; wait")
    reason = diagnose_host.failed_logins({"a": "10.0.0.1"})["a"]["reason"]
    assert reason.startswith("the login does not end within 1 s, so the login shell there hangs; see its start files")
    assert not is_alive(int((tmp_path / "started").read_text()))


def test_an_import_that_hangs_is_told(script, monkeypatch):
    monkeypatch.setattr(diagnose_host, "IMPORT_SECONDS", 0.2)
    asked = diagnose_host.try_imports(script("python", "exec sleep 1000"), ["torch"], {})
    assert asked == {"imports": {}, "imports_error": "it does not end within 0.2 s"}


def test_a_host_without_ssh_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert diagnose_host.failed_logins({"a": "x"})["a"]["reason"] == "ssh: No such file or directory"
