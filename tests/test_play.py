"""scripts/play.py, the entry point for programs: its events, its exit code, and that it leaves no files."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from play import play

ENTRY_POINT = [sys.executable, str(REPOSITORY / "scripts/play.py")]


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Write a playbook with these tasks for localhost; temporary files go to the test's own folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def write(*tasks: dict) -> str:
        path = tmp_path / "book.yml"
        path.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": list(tasks)}]))
        return str(path)

    return write


def left(tmp_path: Path) -> list[Path]:
    """The temporary files."""
    return list((tmp_path / "tmp").iterdir())


def test_events_and_summary(book, tmp_path):
    """What changed, what failed and why; a result with no_log stays hidden."""
    path = book(
        {"name": "Change", "command": "true"},
        {"name": "Hide", "command": "echo {{ secret }}", "no_log": True, "vars": {"secret": "sesame"}},
        {"name": "Refuse", "fail": {"msg": "localhost: no; say yes"}},
    )
    seen: list[dict] = []
    interrupt = signal.getsignal(signal.SIGINT)
    done = play(path, on_event=seen.append)
    assert (done.rc, done.status) == (2, "failed")
    assert done.failures() == ["localhost: no; say yes"]
    assert done.hosts("changed") == {"localhost": 2}
    assert done.hosts("failures") == {"localhost": 1}
    assert seen == done.events
    assert [e["task"] for e in seen if e["event"] == "runner_on_ok"] == ["Change", "Hide"]
    assert seen[-1] == {"event": "end", "rc": 2, "status": "failed"}
    assert "sesame" not in json.dumps(seen) + done.stdout
    assert left(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is interrupt, "Ctrl-C belongs to the caller again"


def test_an_ignored_failure_is_no_failure(book):
    """The exit code and the failures agree."""
    done = play(book({"command": "false", "ignore_errors": True}))
    assert (done.rc, done.failures()) == (0, [])


def test_host_keys_are_checked_and_the_token_is_no_file(book, tmp_path):
    """By default ansible-runner would neither check host keys nor keep the token out of its files."""
    grep = f"grep -rl sesame-of-mine {tmp_path}/tmp"
    shell = {"ansible.builtin.shell": f"echo checking=$ANSIBLE_HOST_KEY_CHECKING; {grep} || echo nothing"}
    path = book(shell | {"register": "said"}, {"debug": {"msg": "{{ said.stdout }}"}})
    done = play(path, environment={"HF_TOKEN": "sesame-of-mine"})
    assert [e["msg"] for e in done.events if "msg" in e] == ["checking=True\nnothing"]


def test_a_reader_that_leaves_does_not_end_the_playbook(book, tmp_path):
    """The exit code is that of the playbook."""
    path = book({"command": f"touch {tmp_path}/done"}, {"command": "sh -c 'exit 3'"})
    done = subprocess.Popen([*ENTRY_POINT, path], stdout=subprocess.PIPE)
    done.stdout.close()
    assert done.wait(timeout=300) == 2
    assert (tmp_path / "done").exists()


def wait_for_end(sleeper):
    """Wait for the end of a module's process, which is a moment after the playbook's."""
    end = time.monotonic() + 10
    while (code := subprocess.run(["pgrep", "--full", sleeper], check=False, capture_output=True).returncode) != 1:
        assert code == 0
        assert time.monotonic() < end, "it still runs"
        time.sleep(0.1)


def test_a_signal_ends_it(book, tmp_path):
    """254, an end event, no process left and no file of ours; a killed module may leave its own file."""
    path = book({"command": "sleep 600.25"})
    with subprocess.Popen([*ENTRY_POINT, path], stdout=subprocess.PIPE, text=True) as entry_point:
        for line in entry_point.stdout:
            if json.loads(line)["event"] == "playbook_on_task_start":
                break
        entry_point.send_signal(signal.SIGTERM)
        rest = [json.loads(line) for line in entry_point.stdout]
        assert entry_point.wait(timeout=300) == 254
    assert rest[-1] == {"event": "end", "rc": 254, "status": "canceled"}
    assert not list((tmp_path / "tmp").glob("sdtune-play-*"))
    wait_for_end("^sleep 600.25")


def test_a_playbook_that_does_not_exist(book):
    """Ansible's message is an event too, in any working directory."""
    done = subprocess.run(
        [*ENTRY_POINT, "none.yml"], capture_output=True, text=True, check=False, cwd="/", env=os.environ
    )
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert "none.yml could not be found" in events[0]["text"]


def test_usage():
    """Without a playbook it prints its usage."""
    done = subprocess.run(ENTRY_POINT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "scripts/play.py train.yml" in done.stderr


def test_a_playbook_that_was_killed(book):
    """For example by the Linux kernel when memory runs out: that is a failure."""

    def kill(event: dict) -> None:
        if event["event"] == "playbook_on_task_start":
            pids = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))
            subprocess.run(["kill", "-9", *pids.split()], check=True)

    done = play(book({"command": "sleep 3"}), timeout=30, on_event=kill)
    assert (done.rc, done.status) == (255, "failed")


def test_a_playbook_that_takes_too_long(book):
    """It is ended at the timeout; the result is neither success nor an ordinary failure."""
    done = play(book({"command": "sleep 600.75"}), timeout=3)
    assert (done.rc, done.status) == (254, "timeout")
    wait_for_end("^sleep 600.75")
