"""The lock of provision.yml and teardown.yml: the host's end of it, and the action over a fake of the connection."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from conftest import REPOSITORY

from plugins.action import hold_lock

SCRIPT = (REPOSITORY / "python/standalone/hold_lock.py").read_text()


def call(command, path, about, watched):
    """The host's end, as Ansible starts it."""
    argv = [sys.executable, "-", command, str(path), about, "--watch", str(watched)]
    return subprocess.run(argv, input=SCRIPT, capture_output=True, text=True, check=True, timeout=20).stdout


def take(path, token, watched):
    """Try to take it, while a process lives."""
    return json.loads(call("take", path, json.dumps({"token": token}), watched))


@pytest.fixture
def connection():
    """A process that stands for a connection."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


class Holder(hold_lock.ActionModule):
    """The action over a shell, as if its ansible-playbook were ``process``."""

    def __init__(self, path, process, **more):
        arguments = {"file": str(path), "protects": "/srv/x", "python": sys.executable, "wait": 0, **more}
        self._task = SimpleNamespace(args=arguments, check_mode=False)
        self._process = process

    def _call(self, command, about):
        return call(command, self._task.args["file"], about, self._process)


@pytest.fixture
def run(monkeypatch):
    """Run the action; ``over`` says whether the other call has ended."""
    monkeypatch.setattr(hold_lock.ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(hold_lock.time, "sleep", lambda _: None)

    def start(*args, over=False, **more):
        monkeypatch.setattr(hold_lock, "is_over", lambda *_: over)
        return Holder(*args, **more).run(None, {"inventory_hostname": "node1"})

    return start


def test_it_is_held_until_it_is_released(tmp_path, connection):
    path = tmp_path / "lock"
    assert take(path, "a", connection.pid)["held"]
    assert path.stat().st_mode & 0o777 == 0o600
    other = take(path, "b", os.getpid())
    assert (other["held"], other["by"]["token"]) == (False, "a")
    call("release", path, "b", 1)  # by another it is not
    assert not take(path, "b", connection.pid)["held"]
    call("release", path, "a", 1)
    assert not path.exists()
    assert take(path, "b", connection.pid)["held"]


def test_it_ends_with_the_connection(tmp_path, connection):
    path = tmp_path / "lock"
    take(path, "a", connection.pid)
    connection.kill()
    connection.wait()
    end = time.monotonic() + 20
    while not take(path, "b", connection.pid + 0)["held"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_where_nothing_can_be_watched_nobody_is_kept_out(tmp_path):
    assert take(tmp_path / "lock", "a", 0)["held"]
    assert not (tmp_path / "lock").exists()


def test_the_second_call_is_refused_by_name_and_a_call_that_is_over_is_not_waited_for(tmp_path, connection, run):
    path = tmp_path / "lock"
    first = run(path, connection.pid)
    with pytest.raises(AnsibleActionFail, match=r"^node1: another ansible-playbook is changing /srv/x \(.+@.+, since "):
        run(path, connection.pid)
    second = run(path, connection.pid, over=True)
    assert second["token"] != first["token"]
    run(path, connection.pid, token=second["token"])
    assert not path.exists()


def test_a_call_is_over_when_its_process_is_another():
    own = hold_lock.this_call()
    assert not hold_lock.is_over(own, own)
    assert hold_lock.is_over({**own, "started": "1"}, own)
    assert not hold_lock.is_over({**own, "started": "1", "node": "elsewhere"}, own)
