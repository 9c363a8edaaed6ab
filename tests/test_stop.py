"""stop.yml: what it waits for, and what it says when a run does not stop."""

import signal
import subprocess
import sys
import time

import pytest

# a fake of a supervisor: it holds the lock until it is asked to stop
SUPERVISOR = """
import fcntl, json, os, sys, time
lock = open(".supervisor.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
json.dump({"run_name": "r", "state": "running", "pid": os.getpid()}, open("state.json", "w"))
while not os.path.exists("stop"):
    time.sleep(0.1)
json.dump({"run_name": "r", "state": "stopped", "reason": "on request"}, open("state.json", "w"))
"""


@pytest.fixture
def supervisor(provisioned):
    """A run that is going on."""
    run = provisioned / "runs/r"
    run.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR], cwd=run) as process:
        end = time.monotonic() + 30
        while not (run / "state.json").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        yield process
        process.kill()


def test_a_supervisor_that_stands_still_is_told_and_one_that_works_stops(playbook, supervisor):
    """Also with a timeout as -e stop_timeout=30 gives it: as text."""
    supervisor.send_signal(signal.SIGSTOP)
    done = playbook("stop.yml", run_name="r")
    assert done.returncode == 2, done.stdout
    told = " ".join(done.played.failures())
    assert f"its supervisor, process {supervisor.pid}, is stopped, as by SIGSTOP" in told
    supervisor.send_signal(signal.SIGCONT)
    done = playbook("stop.yml", run_name="r", stop_timeout="30")
    assert done.returncode == 0, done.stdout
    assert "r has stopped on request" in " ".join(done.stdout.split())
    assert supervisor.wait(30) == 0
