"""The lock of provision.yml and teardown.yml: the host's end, the process that renews it, and whole calls."""

import contextlib
import getpass
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure
from conftest import REPOSITORY

from plugins import keeper
from plugins.action import hold_lock

SCRIPT = (REPOSITORY / "python/standalone/hold_lock.py").read_text()
LEASE = 10  # seconds
PATIENCE = 240  # seconds


def call(command, path, token, seconds=60.0):
    """The host's end, as Ansible starts it."""
    argv = [sys.executable, "-", command, str(path), json.dumps({"token": token}), str(seconds)]
    return json.loads(subprocess.run(argv, input=SCRIPT, capture_output=True, text=True, check=True, timeout=20).stdout)


@pytest.fixture
def path(tmp_path):
    """The lock file."""
    return tmp_path / "lock"


def test_it_is_held_until_it_is_released(path):
    assert call("take", path, "a")["held"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert call("renew", path, "a")["held"]
    assert call("look", path, "a")["held"]
    for command in ("take", "look", "renew"):
        other = call(command, path, "b")
        assert (other["held"], other["by"]["token"]) == (False, "a")
    call("release", path, "b")  # by another it is not
    assert not call("take", path, "b")["held"]
    call("release", path, "a")
    assert not path.exists()
    assert call("look", path, "b")["held"]
    assert not call("renew", path, "a")["held"]
    assert not path.exists()
    assert call("take", path, "b")["held"]


def test_its_time_runs_out_and_ends_with_the_boot_of_the_host(path):
    call("take", path, "a", -1)
    assert call("renew", path, "a", 60)["held"]  # nobody took it
    text = path.read_text()
    for broken in (text.replace('"boot_of_host": "', '"boot_of_host": "0'), text[:-5], "[]", ""):
        path.write_text(broken)
        assert call("take", path, "b", -1)["held"]
    assert call("renew", path, "a")["by"]["token"] == "b"


class Host:
    """A host in place of the time that passes: each renewal takes a second."""

    def __init__(self, monkeypatch, answers, dies=10**9):
        self.now, self._answers = 0.0, iter(answers)
        monkeypatch.setattr(keeper, "clock", lambda: self.now)
        monkeypatch.setattr(keeper.time, "sleep", self.sleep)
        monkeypatch.setattr(keeper, "is_alive", lambda *_: self.now < dies)

    def sleep(self, seconds):
        self.now += seconds

    def renew(self):
        self.now += 1
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


CUT = AnsibleConnectionFailure("no route")


def test_it_is_renewed_while_the_call_lives(monkeypatch):
    host = Host(monkeypatch, [""] * 1000, dies=3600)
    assert keeper.keep((1, "1"), host.renew, 60) == ""
    assert 3600 <= host.now < 3602


def test_a_short_cut_of_the_network_is_survived_a_long_one_and_another_holder_are_told(monkeypatch):
    assert keeper.keep((1, "1"), Host(monkeypatch, ["", CUT, CUT, CUT, "taken"]).renew, 60) == "taken"
    host = Host(monkeypatch, [""] + [CUT] * 1000)
    assert keeper.keep((1, "1"), host.renew, 60) == "it does not answer for 60 s (no route)"
    assert host.now < 100


def test_a_call_is_over_when_its_process_is_another():
    own = hold_lock.this_call()
    assert not hold_lock.is_over(own, own)
    assert hold_lock.is_over({**own, "started": "1"}, own)
    assert not hold_lock.is_over({**own, "started": "1", "node": "elsewhere"}, own)
    assert not hold_lock.is_over({**own, "started": "1", "boot": "another container"}, own)
    assert not hold_lock.is_over({}, own)


class Calls:
    """Calls of ansible-playbook that take the lock, wait for the file NAME.go, and release it."""

    def __init__(self, folder):
        self.folder, self.lock = folder, folder / "lock"
        self._started = []

    def start(self, name, wait=0):
        """Start one; NAME.holds appears when it holds the lock, NAME.later when it has begun another task."""
        about = {"file": str(self.lock), "python": sys.executable, "protects": "/srv/x"}
        until = f"touch {name}.holds; until test -e {name}.go; do sleep 0.1; done"
        tasks = [
            {"hold_lock": {**about, "wait": wait, "lease": LEASE}, "register": "taken"},
            {"ansible.builtin.command": {"argv": ["sh", "-c", until], "chdir": str(self.folder)}},
            {"ansible.builtin.command": {"argv": ["touch", str(self.folder / f"{name}.later")]}},
            {"hold_lock": {**about, "holder": "{{ taken.holder }}"}},
        ]
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
        file = self.folder / f"{name}.yml"
        file.write_text(yaml.safe_dump([play], sort_keys=False))
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(file)]
        argv += ["-e", f"ansible_python_interpreter={sys.executable}"]
        process = subprocess.Popen(
            argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._started.append(process)
        return process

    def is_there(self, name):
        """Whether a file of the folder exists."""
        return (self.folder / name).exists()

    def end(self):
        """End all; a worker of a call that was killed works on until then."""
        for file in self.folder.glob("*.yml"):
            file.with_suffix(".go").touch()
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for(holds):
    """Wait until something holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def calls(tmp_path):
    """Calls in the folder of the test."""
    made = Calls(tmp_path)
    yield made
    made.end()


def test_a_second_call_is_refused_by_name_until_the_first_has_ended_or_is_killed(calls):
    first = calls.start("first")
    wait_for(lambda: calls.is_there("first.holds"))
    refused = calls.start("second", wait=LEASE + 1)  # without being renewed, the lock would be free by then
    said = refused.communicate(timeout=PATIENCE)[0]
    assert refused.returncode == 2
    assert f"localhost: another ansible-playbook is changing /srv/x ({getpass.getuser()}@" in said
    assert f"process {first.pid} there); type the same when it is done" in said
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: not calls.is_there("lock"))
    third = calls.start("third")
    (calls.folder / "third.go").touch()
    assert third.wait(timeout=PATIENCE) == 0
    assert not calls.is_there("lock")
    assert calls.is_there("third.later")
    assert not calls.is_there("second.holds")


def test_a_call_whose_lock_another_took_ends_before_its_next_task(calls):
    first = calls.start("first")
    wait_for(lambda: calls.is_there("first.holds"))
    calls.lock.write_text(json.dumps({"user": "ann", "node": "desk", "since": "10:00:00 UTC", "pid": 7, "token": "b"}))
    said = ""
    while "is lost" not in said and (line := first.stdout.readline()):
        said += line
    (calls.folder / "first.go").touch()
    said += first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == 2
    assert "the lock on /srv/x is lost: another call took it (ann@desk, since 10:00:00 UTC, process 7 there)" in said
    assert "localhost: this call holds its lock no longer" in said
    assert not calls.is_there("first.later")
