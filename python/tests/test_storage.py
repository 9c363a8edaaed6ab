"""What storage.py and login.py say of folders and accounts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from standalone import login, storage

FOLDER = Path(storage.__file__).parent


def test_a_mark_is_seen_where_the_folder_is_shared_and_removes_itself(tmp_path):
    """In the closest folder that exists, as work_dir does not on a clean host."""
    program = [sys.executable, "-I", FOLDER / "storage.py"]
    work = tmp_path / "not/yet"
    done = subprocess.run([*program, "look", "60", work, tmp_path], capture_output=True, text=True, check=True)
    looked = json.loads(done.stdout)
    assert (Path(looked["mark"]).parent, looked["error"]) == (tmp_path, "")
    assert looked["folders"][str(work)]["at"] == str(tmp_path)
    assert not looked["folders"][str(tmp_path)]["read_only"]
    asked = [*program, "seen", f"node2={looked['mark']}", f"node3={tmp_path}/none"]
    assert json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) == ["node2"]
    subprocess.run([*program, "remove", looked["mark"]], check=True)
    end = time.monotonic() + 60
    while left := subprocess.run(["pgrep", "--full", f"look 60 {work}"], capture_output=True, check=False).stdout:
        assert time.monotonic() < end, left
        time.sleep(0.05)
    assert storage.mark(str(tmp_path), 0) == {"mark": "", "error": ""}
    brief = storage.mark(str(tmp_path), 0.1)["mark"]
    end = time.monotonic() + 60
    while Path(brief).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(brief).exists()


def test_a_folder_that_cannot_be_written_to(monkeypatch, tmp_path):
    """The operating system's own reason: permissions do not show a full disk or a quota."""

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert storage.mark(str(tmp_path), 1) == {"mark": "", "error": f"{tmp_path}: No space left on device"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, []),
        (
            {"allowusers": "admin root"},
            ["lets in only admin root (AllowUsers in /etc/ssh/sshd_config), not runner; add"],
        ),
        ({"allowusers": "runner@10.0.0.*"}, []),
        (
            {"allowusers": "runner@10.1.*"},
            ["lets in only runner@10.1.* (AllowUsers in /etc/ssh/sshd_config), not runner from"],
        ),
        ({"allowusers": "*@10.0.0.0/24 x"}, []),
        ({"allowusers": "*@10.0.0.*,!10.0.0.7"}, ["lets in only *@10.0.0.*,!10.0.0.7 (AllowUsers"]),
        ({"allowusers": "*@*,!10.0.0.0/29"}, ["lets in only"]),
        ({"allowusers": "runner@*.LAN"}, []),
        ({"allowusers": "runner@*,!*.lan"}, ["lets in only"]),
        ({"allowusers": "r?nner"}, []),
        ({"allowusers": "[r]unner"}, ["lets in only"]),  # no pattern of sshd
        ({"allowusers": "* !runner"}, []),  # ! is for hosts: sshd looks for a user of that name
        ({"denyusers": "runner@192.0.2.1 admin"}, []),
        ({"denyusers": "runner@10.*,!10.0.0.7"}, []),
        ({"denygroups": "us*s"}, ["turns runner away (DenyGroups"]),
        ({"authenticationmethods": "any"}, []),
        ({"authenticationmethods": "publickey,password publickey"}, []),
        (
            {"authenticationmethods": "publickey,password"},
            ["asks for more than a key (AuthenticationMethods publickey,p"],
        ),
        ({"authorizedkeysfile": "none"}, ["reads no file of keys (AuthorizedKeysFile"]),
        ({"allowusers": "run* root"}, []),
        ({"allowgroups": "wheel"}, ["lets in only wheel (AllowGroups"]),
        ({"denyusers": "runner@10.*"}, ["turns runner from n7.lan away (DenyUsers"]),
        ({"authorizedkeysfile": "/etc/ssh/keys/%u"}, ["reads keys from /etc/ssh/keys/runner (AuthorizedKeysFile"]),
        ({"authorizedkeysfile": "%h/.ssh/authorized_keys /etc/ssh/keys/%u"}, []),
        ({"pubkeyauthentication": "no", "forcecommand": "none"}, ["accepts no keys"]),
        ({"forcecommand": "internal-sftp"}, ["runs internal-sftp instead of a command"]),
    ],
)
def test_what_the_configuration_of_sshd_says(settings, told):
    found = list(login.daemon_obstacles(settings, "runner", "/home/runner", ["runner", "users"], "n7.lan", "10.0.0.7"))
    assert len(found) == len(told)
    assert all(text in line for text, line in zip(told, found, strict=True))


@pytest.mark.parametrize(
    ("entry", "pam", "told"),
    [
        ("r:*:19000:0:99999:7:::", True, ""),
        ("r:*:19000:0:99999:7::20001:", True, ""),
        ("r:*:19000:0:99999:7::20000:", True, "the account r has expired"),
        ("r:*:19000:0:99999:7::20000:", False, "the account r has expired"),
        ("r:!x:19000::::::", True, ""),  # PAM lets a key in
        ("r:!x:19000::::::", False, "the account r is locked"),
        ("r:*:0:0:99999:7:::", True, "the password of r has expired"),
        ("r:*:19000:0:90:7:::", True, "the password of r has expired"),
        ("r:*:19000:0:90:7:::", False, ""),
    ],
)
def test_an_account_that_is_closed(entry, pam, told):
    found = list(login.account_obstacles(entry.split(":"), "r", 20000, pam=pam))
    assert [line.partition(" there")[0] for line in found] == ([told] if told else [])


def test_a_host_without_passwords_of_its_own():
    assert list(login.account_obstacles([], "r", 20000, pam=True)) == []


def test_a_host_that_lets_nobody_in(tmp_path):
    (tmp_path / "nologin").touch()
    (found,) = login.closed_host((str(tmp_path / "nologin"), str(tmp_path / "other")))
    assert found.startswith(f"only root may log in there while {tmp_path}/nologin exists")


def test_a_home_that_sshd_mistrusts(tmp_path, monkeypatch):
    """What others may write to; and what does not exist."""
    user = login.pwd.getpwuid(os.getuid()).pw_name
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".ssh/authorized_keys").touch(mode=0o600)
    monkeypatch.setattr(login, "private_group", lambda *_: False)
    tmp_path.chmod(0o755)
    assert list(login.mistrusted(str(tmp_path), user)) == []
    tmp_path.chmod(0o775)
    assert list(login.mistrusted(str(tmp_path), user)) == [
        f"sshd there mistrusts {tmp_path}, which others may write to; type chmod go-w {tmp_path}"
    ]
    (found,) = login.mistrusted(str(tmp_path / "gone"), user)
    assert found.endswith("No such file or directory")


SHELLS = [
    ("/bin/sh", ""),
    ("", ""),  # sh
    ("/usr/sbin/nologin", "/usr/sbin/nologin does not run commands"),
    ("/bin/false", "/bin/false does not run commands"),
    ("/usr/bin/git-shell", "/usr/bin/git-shell does not run commands"),
    ("/no/fish", "/no/fish cannot be started"),
]


@pytest.mark.parametrize(("shell", "wrong"), SHELLS)
def test_shells(shell, wrong):
    assert login.closed_shell(shell) == wrong


def test_preflight_asks_for_the_shell_alone():
    """As root, whose shell is one that runs commands."""
    user = login.pwd.getpwuid(os.getuid()).pw_name
    program = [sys.executable, "-I", FOLDER / "login.py", user]
    assert subprocess.run(program, capture_output=True, text=True, check=True).stdout == "\n"
