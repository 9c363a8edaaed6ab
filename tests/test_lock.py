"""The lock of provision.yml and teardown.yml: the host's end, the process that renews it, and whole calls."""

import contextlib
import getpass
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure
from conftest import REPOSITORY

from plugins import keeper
from plugins.action import hold_lock
from plugins.callback import held_lock

SCRIPT = (REPOSITORY / "python/standalone/hold_lock.py").read_text()
LEASE = 10  # seconds
PATIENCE = 240  # seconds
LOCKS = [("preflight", "lock"), ("ssh_mesh", "lock")]
UNLOCKS = [("ssh_mesh", "unlock"), ("preflight", "unlock")]


def call(command, path, token, seconds=60.0, folder="/srv/x"):
    """The host's end, as Ansible starts it; of a holder's file, or without one of a folder."""
    who = {"token": token, "file": str(path)} if path.suffix else {"token": token}
    argv = [sys.executable, "-", command, str(path), str(folder), json.dumps(who), str(seconds)]
    return json.loads(subprocess.run(argv, input=SCRIPT, capture_output=True, text=True, check=True, timeout=20).stdout)


@pytest.fixture
def path(tmp_path):
    """The lock file."""
    return tmp_path / "x.lock"


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


def test_every_path_to_a_folder_is_the_same_lock(tmp_path):
    """Also of a folder that is not there yet, and after the symbolic link has gone."""
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    taken = call("take", tmp_path, "a", folder=link / "work")
    for ending in ("real/work/", "/real//work", "real/./work/.", "link/work", "real/other/../work"):
        assert not call("take", tmp_path, "b", folder=f"{tmp_path}/{ending}")["held"], ending
    assert not call("take", tmp_path, "b", folder=f"/{tmp_path}/real/work")["held"]
    assert call("take", tmp_path, "b", folder=tmp_path / "real/other")["held"]
    link.unlink()
    file = tmp_path / taken["by"]["file"]
    assert call("renew", file, "a")["held"]
    call("release", file, "a")
    assert not file.exists()


def test_a_folder_below_the_home_of_a_user_is_that_folder(tmp_path):
    """Also with the home of another user, which the caller's own HOME says nothing of."""
    user = pwd.getpwuid(os.getuid())
    assert call("take", tmp_path, "a", folder=f"~{user.pw_name}/.ssh")["held"]
    assert not call("take", tmp_path, "b", folder=f"{user.pw_dir}/.ssh/")["held"]
    assert call("take", tmp_path, "b", folder=f"{user.pw_dir}/work")["held"]


def result_of(action="hold_lock", **values):
    """A task's result as a callback gets it."""
    return SimpleNamespace(task=SimpleNamespace(action=action), result=values)


def test_a_call_may_hold_two_locks_on_a_host(monkeypatch):
    """Each ends the call when it is lost; one that was released does not, and leaves the other in force."""
    callback, alive = held_lock.CallbackModule(), {1, 2}
    monkeypatch.setattr(held_lock.keeper, "is_alive", lambda pid, _: pid in alive)
    for pid, file in ((1, "work"), (2, "key")):
        callback.v2_runner_on_ok(result_of(results=[{"host": "a", "file": file, "holder": {"keeper": [pid, "1"]}}]))
    callback.v2_playbook_on_task_start(None, False)
    callback.v2_runner_on_ok(result_of(results=[{"host": "a", "file": "key"}]))
    alive.remove(2)
    callback.v2_playbook_on_task_start(None, False)
    alive.remove(1)
    with pytest.raises(SystemExit):
        callback.v2_playbook_on_task_start(None, False)


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
    """Calls of ansible-playbook that take the locks of hosts, wait for the file NAME.go, and release them.

    Fake: all hosts are this machine; each has a folder of its own for its lock. The tasks are those of role preflight,
    and of role ssh_mesh, which takes its lock after the other and releases it first.
    """

    def __init__(self, folder):
        self.folder = folder
        self._started = []

    def lock(self, host):
        """The lock file of a host; None if there is none."""
        return next((self.folder / host).glob(".sdtune-*.lock"), None)

    def start(self, name, hosts, wait=0, folder="/srv/x", user="nobody"):
        """Start one; NAME.holds appears when it holds the locks, NAME.later when it has begun another task.

        ``hosts``: with their addresses, the primary first.
        """
        until = f"touch {name}.holds; until test -e {name}.go; do sleep 0.1; done"
        work = [
            {"ansible.builtin.command": {"argv": argv, "chdir": str(self.folder)}, "run_once": True}
            for argv in (["sh", "-c", until], ["touch", f"{name}.later"])
        ]
        before, after = ([self._task(*names) for names in some] for some in (LOCKS, UNLOCKS))
        tasks = [*before, *work, *after]
        values = yaml.safe_load((REPOSITORY / "roles/preflight/vars/main.yml").read_text())
        values |= yaml.safe_load((REPOSITORY / "roles/ssh_mesh/vars/main.yml").read_text())
        used = ("preflight_lock_", "_ssh_mesh_locked")
        variables = {key: value for key, value in values.items() if key.startswith(used)} | {
            "ssh_mesh_user": user,
            "_preflight_root_is_needed": False,
            "preflight_lock_place": f"{self.folder}/{{{{ item }}}}",
            "cluster_addresses": hosts,
            "cluster_primary": next(iter(hosts)),
            "cluster_work_dir": folder,
            "preflight_exclusive": True,
            "preflight_lock_seconds": wait,
            "ansible_facts": {"user_id": "x"},
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
        }
        for host in hosts:
            (self.folder / host).mkdir(exist_ok=True)
        play = {"hosts": "all", "gather_facts": False, "any_errors_fatal": True, "vars": variables, "tasks": tasks}
        file = self.folder / f"{name}.yml"
        file.write_text(yaml.safe_dump([play], sort_keys=False))
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", ",".join([*hosts, ""]), str(file)]
        process = subprocess.Popen(
            argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._started.append(process)
        return process

    @staticmethod
    def _task(role, name):
        """The task of a role, with a short lease."""
        (task,) = yaml.safe_load((REPOSITORY / f"roles/{role}/tasks/{name}.yml").read_text())
        task["hold_lock"]["lease"] = LEASE
        return task

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
    """Also where its inventory names another primary, and writes the folder in another way."""
    first = calls.start("first", {"a": "10.0.0.2", "b": "10.0.0.1"})
    wait_for(lambda: calls.is_there("first.holds"))
    assert calls.lock("a")
    # without being renewed, the lock would be free by then
    refused = calls.start("second", {"b": "10.0.0.1", "c": "10.0.0.0", "a": "10.0.0.2"}, LEASE + 1, "/srv//x/")
    said = refused.communicate(timeout=PATIENCE)[0]
    assert refused.returncode == 2
    assert f"b: another ansible-playbook is changing /srv//x/ ({getpass.getuser()}@" in said
    assert f"process {first.pid} there); type the same when it is done" in said
    assert said.count("is changing") == 1  # it waited for the first host that another holds, and asked no more
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(calls.lock, "abc")))
    third = calls.start("third", {"a": "10.0.0.2"})
    (calls.folder / "third.go").touch()
    assert third.wait(timeout=PATIENCE) == 0
    assert not calls.lock("a")
    assert calls.is_there("third.later")
    assert not calls.is_there("second.holds")


def test_a_call_of_whose_locks_another_took_one_ends_before_its_next_task(calls):
    first = calls.start("first", {"a": "10.0.0.1", "b": "10.0.0.2"})
    wait_for(lambda: calls.is_there("first.holds"))
    other = {"user": "ann", "node": "desk", "since": "10:00:00 UTC", "pid": 7, "token": "b"}
    calls.lock("b").write_text(json.dumps(other))
    said = ""
    while "is lost" not in said and (line := first.stdout.readline()):
        said += line
    (calls.folder / "first.go").touch()
    said += first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == 2
    assert "b: the lock on /srv/x is lost: another call took it (ann@desk, since 10:00:00 UTC, process 7 there)" in said
    assert "b: this call holds its lock no longer" in said
    assert not calls.is_there("first.later")
    wait_for(lambda: not calls.lock("a"))


def test_of_two_work_dirs_of_one_user_one_call_at_a_time_changes_the_key(calls):
    """Another user's key is no matter, and a call that waits for the key has released nothing."""
    first = calls.start("first", {"a": "10.0.0.1"})
    wait_for(lambda: calls.is_there("first.holds"))
    refused = calls.start("second", {"a": "10.0.0.1"}, folder="/srv/y")
    other = calls.start("other", {"a": "10.0.0.1"}, folder="/srv/z", user="daemon")
    said = refused.communicate(timeout=PATIENCE)[0]
    assert refused.returncode == 2
    assert f"a: another ansible-playbook is changing ~nobody/.ssh ({getpass.getuser()}@" in said
    assert not calls.is_there("second.holds")
    wait_for(lambda: calls.is_there("other.holds"))
    waits = calls.start("third", {"a": "10.0.0.1"}, wait=PATIENCE, folder="/srv/y")
    for name in ("first", "other", "third"):
        (calls.folder / f"{name}.go").touch()
    assert [process.wait(timeout=PATIENCE) for process in (first, other, waits)] == [0, 0, 0]
    assert not calls.lock("a")
