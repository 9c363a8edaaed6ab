"""The lock of provision.yml and teardown.yml: the host's end, the process that renews it, and whole calls."""

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
LEASE = 2  # seconds


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
    for command in ("take", "renew"):
        other = call(command, path, "b")
        assert (other["held"], other["by"]["token"]) == (False, "a")
    call("release", path, "b")  # by another it is not
    assert not call("take", path, "b")["held"]
    call("release", path, "a")
    assert not path.exists()
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
    """Calls of ansible-playbook that take the lock, do something, and release it."""

    def __init__(self, folder):
        self.folder, self.lock = folder, folder / "lock"
        self._started = []

    def start(self, name, shell, wait=0):
        """Start one; ``shell`` runs while it holds the lock."""
        about = {"file": str(self.lock), "python": sys.executable, "protects": "/srv/x"}
        tasks = [
            {"hold_lock": {**about, "wait": wait, "lease": LEASE}, "register": "taken"},
            {"ansible.builtin.command": {"argv": ["sh", "-c", shell]}},
            {"ansible.builtin.command": {"argv": ["touch", f"{name}.later"]}},
            {"hold_lock": {**about, "holder": "{{ taken.holder }}"}},
        ]
        for task in tasks[1:3]:
            task["ansible.builtin.command"]["chdir"] = str(self.folder)
        play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]
        play[0]["vars"] = {"ansible_python_interpreter": sys.executable}
        (self.folder / f"{name}.yml").write_text(yaml.safe_dump(play, sort_keys=False))
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(self.folder / f"{name}.yml")]
        process = subprocess.Popen(
            argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._started.append(process)
        return process

    def started(self, name, seconds=30.0):
        """Start one that holds the lock for some seconds; its process, once it holds it."""
        process = self.start(name, f"touch {name}.holds; sleep {seconds}")
        self.wait_for(lambda: (self.folder / f"{name}.holds").exists())
        return process

    def wait_for(self, holds):
        """Wait until something holds."""
        end = time.monotonic() + 240
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.05)

    def end(self):
        """End all."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def calls(tmp_path):
    """Calls in the folder of the test."""
    made = Calls(tmp_path)
    yield made
    made.end()


def test_a_second_call_is_refused_by_name_for_as_long_as_the_first_one_works(calls):
    first = calls.started("first", 3 * LEASE)
    time.sleep(1.5 * LEASE)
    refused = calls.start("second", "true")
    said = refused.communicate(timeout=240)[0]
    assert refused.returncode == 2
    assert f"localhost: another ansible-playbook is changing /srv/x ({hold_lock.getpass.getuser()}@" in said
    assert f"process {first.pid} there); type the same when it is done" in said
    assert first.wait(timeout=240) == 0
    assert not calls.lock.exists()
    assert not (calls.folder / "second.later").exists()


def test_it_ends_with_a_call_that_is_killed_and_its_process_with_it(calls):
    first = calls.started("first")
    os.kill(first.pid, signal.SIGKILL)
    calls.wait_for(lambda: not calls.lock.exists())


def test_a_call_whose_lock_another_took_ends_before_its_next_task(calls):
    first = calls.start("first", f"touch first.holds; sleep {2 * LEASE}")
    calls.wait_for((calls.folder / "first.holds").exists)
    calls.lock.write_text(json.dumps({"user": "ann", "node": "desk", "since": "10:00:00 UTC", "pid": 7, "token": "b"}))
    said = first.communicate(timeout=240)[0]
    assert first.returncode == 2
    assert "the lock on /srv/x is lost: another call took it (ann@desk, since 10:00:00 UTC, process 7 there)" in said
    assert "localhost: this call holds its lock no longer" in said
    assert not (calls.folder / "first.later").exists()
