"""The supervisor and the agents, with a fake mpirun: processes that sleep in place of ranks, all on this host."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdtune.launch import processes, rank_error, supervisor
from sdtune.launch.state import StateFile
from standalone import host_claims, launch_files, run_state
from tests.conftest import FINISH

PYTHON = Path(__file__).parents[1]
SUPERVISE = ("-P", "-m", "sdtune.launch")

# a fake of launch.sh, mpirun and rank.sh: two ranks, each with its agent; each test says what a rank does
LAUNCH = f"""#!/bin/bash
echo "arguments: $*"
export SDTUNE_RUN=$PWD
exec 9>.lock
flock --nonblock 9 || exit 2
rank() {{
    local self=$BASHPID
    exec {{agent}}> >(exec setsid {sys.executable} {" ".join(SUPERVISE)} agent "$1" "$self" $$)
    echo $! > "agent.$1"
    export SDTUNE_RANK=$1 SDTUNE_AGENT_FD=$agent
    exec > >(sed --unbuffered "s/^/[$1] /") 2>&1
    exec setpriv --pdeathsig KILL {sys.executable} rank.py "$1" "${{@:2}}"
}}
(rank 0 "$@") & first=$!
(rank 1 "$@") & second=$!
code=0
wait -n -p ended "$first" "$second" || code=$?
[ "$code" = 0 ] || {{
    # its agent reports first, as over a network; the command line of a process that has ended is empty
    [ "$ended" = "$first" ] && rank=0 || rank=1
    while grep -q . "/proc/$(cat agent.$rank)/cmdline" 2>/dev/null; do sleep 0.02; done
    kill -9 "$first" "$second" 2>/dev/null
    exit "$code"
}}
wait "$first" "$second"
"""
RANK = """
import json, os, signal, sys, time
from sdtune import cli, errors
rank, arguments = int(sys.argv[1]), sys.argv[2:]
def step(n):
    if rank == 0:
        with open("metrics.jsonl", "a") as f:
            line = {"kind": "step", "step": n, "time": time.time(), "loss": 1.0, "step_s": 0.1, "images_per_s": 1}
            f.write(json.dumps(line) + chr(10))
def main():
    exec(compile(open("what.py").read(), "what.py", "exec"), globals())
cli.run(main)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder; the test writes what a rank does."""
    monkeypatch.setenv("PYTHONPATH", str(PYTHON))
    folder = tmp_path / "runs" / "r"
    (folder / "logs").mkdir(parents=True)
    (folder / "launch.sh").write_text(LAUNCH)
    (folder / "launch.sh").chmod(0o755)
    (folder / "job.yaml").write_text("training:\n  max_train_steps: 9\n")
    yield folder
    processes.sweep(str(folder))


def plan(run, rank, **settings):
    """Write what the supervisor has to know, and what a rank does."""
    facts = {
        "hosts": {"here": "127.0.0.1"},
        "ranks_per_node": 2,
        "gradient_accumulation_steps": 1,
        "stall_timeout": 30,
        "start_timeout": 30,
        "host_timeout": 5,
        "host_wait": 1,
        "max_restarts": 0,
        "on_host_loss": "fail",
    }
    (run / "supervisor.json").write_text(json.dumps(facts | settings))
    (run / "rank.py").write_text(FINISH + RANK)
    (run / "what.py").write_text(rank)


def start(run, *arguments):
    return subprocess.Popen([sys.executable, *SUPERVISE, "run", run, *arguments], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def pid_of(run, rank):
    """PID of a rank that runs rank.py."""

    def look():
        for pid in processes.processes_of(str(run)):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if command[1:3] == [b"rank.py", str(rank).encode()]:
                return pid
        return None

    return wait_for(look)


def agents_of(run, process):
    """PIDs of both agents, once the supervisor knows them."""

    def sockets():
        links = []
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(str(entry.readlink()))
        return sum(link.startswith("socket:") for link in links)

    def look():
        found = []
        for pid in processes.processes_of(str(run)):
            with contextlib.suppress(OSError):
                if b"agent" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
        # the supervisor listens at one socket and has taken one for each; then they said who they are, and sleep
        met = len(found) == 2 and sockets() == 3
        return found if met and all(processes.state_and_parent(pid)[0] == "S" for pid in found) else None

    return wait_for(look)


def nothing_left(run, seconds=15):
    wait_for(lambda: not processes.processes_of(str(run)), seconds)


def test_a_run_that_finishes(run):
    plan(run, "step(1); finish()")
    assert start(run).wait(30) == 0
    seen = run_state.look(run)
    assert (seen["state"]["state"], seen["supervised"], seen["finished"]) == ("finished", False, True)
    assert seen["progress"]["step"] == 1
    assert not (run / ".reserve").exists()
    nothing_left(run)


def test_a_rank_that_raises_is_named_with_its_traceback(run):
    plan(
        run,
        "while not os.path.exists('go'): time.sleep(0.05)\nif rank == 1: raise KeyError('surprise')\ntime.sleep(60)",
    )
    process = start(run)
    agents_of(run, process)
    (run / "go").touch()
    assert process.wait(30) == 1
    (failure,) = run_state.read_state(run)["failures"]
    assert failure["why"] == "rank 1 on here: KeyError: 'surprise'"
    assert failure["lines"][0].startswith("Traceback")
    error = json.loads((run / "logs/error-1.json").read_text())
    assert (error["rank"], error["kind"], error["exception"]) == (1, "unexpected", "KeyError")
    assert error["traceback"].splitlines() == failure["lines"]
    nothing_left(run)


def test_an_error_is_known_although_no_file_of_it_can_be_written(run):
    """As on a full disk: the rank's file cannot be written, its agent reports the error all the same."""
    plan(
        run,
        "from sdtune.launch import rank_error\n"
        "def full(*_): raise OSError(28, 'No space left on device')\n"
        "rank_error.write_atomically = full\n"
        "if rank == 0: full()\ntime.sleep(60)",
    )
    assert start(run).wait(30) == 1
    (failure,) = run_state.read_state(run)["failures"]
    assert failure["why"] == "rank 0 on here: OSError: [Errno 28] No space left on device"
    nothing_left(run)


def test_a_rank_that_ends_before_its_agent_watches_it(run):
    plan(run, "raise errors.BadInput('a picture is broken')", max_restarts=5)
    launch = (run / "launch.sh").read_text()
    (run / "launch.sh").write_text(launch.replace("exec setsid", "sleep 2; exec setsid"))
    assert start(run).wait(30) == 2
    state = run_state.read_state(run)
    assert re.fullmatch(r"rank [01] on here: error: a picture is broken", state["reason"])
    assert len(state["failures"]) == 1
    nothing_left(run)


def test_a_rank_that_says_nothing(run):
    plan(run, "if rank == 1: os._exit(7)\ntime.sleep(60)")
    rank_error.write(run, rank_error.RankError.of(KeyError("of an earlier attempt"), 1))
    assert start(run).wait(30) == 1
    assert run_state.read_state(run)["reason"] == "rank 1 on here ended without an error message"
    assert not list((run / "logs").glob("error-*"))
    nothing_left(run)


def test_a_rank_for_which_the_others_wait(run):
    plan(
        run,
        "step(1)\ndef all_reduce(): time.sleep(60)\ndef search(): time.sleep(60)\n[all_reduce, search][rank]()",
        stall_timeout=4,
    )
    assert start(run).wait(30) == 1
    (failure,) = run_state.read_state(run)["failures"]
    assert failure["why"].endswith("rank 1 on here is not in the collective operation in which the others wait")
    assert any("in search" in line for line in failure["lines"])
    nothing_left(run)


def test_a_killed_rank_and_a_restart_from_the_newest_checkpoint(run):
    plan(run, "step(1)\nif '--resume_from_checkpoint' not in arguments: time.sleep(60)\nfinish()", max_restarts=1)
    process = start(run, "--overwrite")
    wait_for(lambda: (run / "metrics.jsonl").exists())
    pid = pid_of(run, 1)
    agents_of(run, process)
    os.kill(pid, signal.SIGKILL)
    assert process.wait(30) == 0
    state = run_state.read_state(run)
    assert (state["state"], state["attempt"]) == ("finished", 2)
    assert state["failures"][0]["rank"] == 1
    said = (run / "logs/launch.log").read_text()
    assert "arguments: --overwrite\n" in said
    assert "arguments: --resume_from_checkpoint auto\n" in said
    nothing_left(run)


@pytest.mark.parametrize("started", [True, False], ids=["after", "before"])
def test_a_rank_that_is_killed_early_ends_the_attempt(run, started):
    """After its agent has connected, and before it has one; mpirun, as Hydra, waits for all ranks."""
    death = "kill -9 $BASHPID" if not started else ":"
    what = "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)"
    plan(run, what, host_timeout=3)
    launch = (
        (run / "launch.sh").read_text().replace("local self=$BASHPID", f'local self=$BASHPID; [ "$1" = 0 ] || {death}')
    )
    (run / "launch.sh").write_text(re.sub(r"code=0\nwait -n.*?\n}\n", "", launch, flags=re.DOTALL))
    began = time.monotonic()
    assert start(run).wait(60) == 1
    assert time.monotonic() - began < 30  # of which a busy machine needs most to start Python
    reason = run_state.read_state(run)["reason"]
    assert reason.startswith(
        "rank 1 on here ended without an error message"
        if started
        else "rank 1 on here has not started, or ended before"
    )
    nothing_left(run)


def test_a_launch_that_ends_well_without_having_finished_is_a_failure(run):
    """As by ranks of another run in its place, or with a finished.json of an earlier one."""
    finish = "if rank == 0: os.environ['SDTUNE_TOKEN'] = 'of another attempt'\nfinish()"
    plan(run, finish)
    assert start(run).wait(60) == 1
    state = run_state.read_state(run)
    assert state["reason"] == "mpirun ended well, but the ranks of this attempt finished nothing"


def test_a_run_waits_for_its_host_when_asked_to(run):
    """Another process claims the core; the run starts when that has ended, and its wait is no attempt."""
    plan(run, "finish()", wait_for_hosts=True, cores={"here": "9100"})
    code = "from standalone import host_claims; held = host_claims.claim_cores('night', [9100]); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=PYTHON)
    wait_for(lambda: host_claims.in_the_way(host_claims.shares(), [9100]))
    process = start(run)
    state = wait_for(lambda: (found := run_state.read_state(run)).get("state") == "waiting" and found)
    assert state["used_by"]["here"].startswith("run night of user ")
    other.communicate(b"\n")
    assert process.wait(60) == 0
    state = run_state.read_state(run)
    assert (state["state"], state["attempt"], state.keys() & {"used_by", "waiting_for"}) == ("finished", 1, set())


def test_a_restarted_run_waits_for_a_run_that_took_its_host_meanwhile(run):
    """Also where it was not asked to wait: it has had the host."""
    plan(
        run,
        "step(1)\nif '--overwrite' in arguments:\n    if rank == 0: raise KeyError\n    time.sleep(60)\nfinish()",
        max_restarts=1,
        cores={"here": "9100"},
    )
    code = "from standalone import host_claims; held = host_claims.claim_cores('night', [9100]); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=PYTHON)
    wait_for(lambda: host_claims.in_the_way(host_claims.shares(), [9100]))
    process = start(run, "--overwrite")
    state = wait_for(lambda: (found := run_state.read_state(run)).get("state") == "waiting" and found, 40)
    assert state["used_by"]["here"].startswith("run night of user ")
    other.communicate(b"\n")
    assert process.wait(60) == 0
    state = run_state.read_state(run)
    assert (state["state"], state["attempt"], state.keys() & {"used_by", "waiting_for"}) == ("finished", 2, set())


@pytest.mark.parametrize(
    ("error", "waits"),
    [("errors.HostBusy('here is used by run night of user ann; wait')", True), ("errors.PortTaken('taken')", False)],
)
def test_what_another_program_had_a_moment_ago_costs_no_restart(run, error, waits):
    """A host, for which the run waits, without a busy loop, and a port, of which the next one is taken."""
    what = f"open('met', 'w').close()\n    raise {error}"
    first = f"if rank == 1 and not os.path.exists('met'):\n    {what}\nif not os.path.exists('go'): time.sleep(60)\n"
    plan(run, f"{first}finish()", wait_for_hosts=waits)
    process = start(run)
    wait_for((run / "met").exists)
    (run / "go").touch()
    if waits:
        state = wait_for(lambda: (found := run_state.read_state(run)).get("state") == "waiting" and found)
        assert state["used_by"] == {"here": "run night of user ann"}
    assert process.wait(60) == 0
    state = run_state.read_state(run)
    assert (state["state"], state["attempt"], state["failures"]) == ("finished", 1, [])


def stage(run, call, **settings):
    """Files of a call as launch_config stages them."""
    folder = launch_files.staged(run, call)
    folder.mkdir()
    (folder / "job.yaml").write_text(f"training:\n  max_train_steps: {settings.pop('steps')}\n")
    (folder / "supervisor.json").write_text((run / "supervisor.json").read_text())


def test_of_two_calls_at_once_the_second_follows_and_changes_nothing(run):
    plan(run, "step(1); time.sleep(60)")
    stage(run, "a", steps=250)
    stage(run, "b", steps=7)
    command = [sys.executable, *SUPERVISE, "start", "--call"]
    two = {x: subprocess.Popen([*command, x, run], stdout=subprocess.PIPE, text=True) for x in "ab"}
    did = {x: json.loads(process.communicate(timeout=60)[0])["did"] for x, process in two.items()}
    assert sorted(did.values()) == ["attached", "started"]
    steps = 250 if did["a"] == "started" else 7
    assert (run / "job.yaml").read_text() == f"training:\n  max_train_steps: {steps}\n"
    with pytest.raises(BlockingIOError):
        launch_files.place_alone(run, "a" if did["a"] == "attached" else "b")
    assert (run / "job.yaml").read_text() == f"training:\n  max_train_steps: {steps}\n"
    os.kill(run_state.read_state(run)["pid"], signal.SIGTERM)
    nothing_left(run)


def test_a_late_call_changes_nothing_of_a_finished_run(run):
    """Two are prepared while nothing runs; the second starts when the first has finished, before and under the lock."""
    plan(run, "step(1); finish()")
    for call, steps in (("a", 250), ("b", 7)):
        stage(run, call, steps=steps)
    command = [sys.executable, *SUPERVISE]
    subprocess.run([*command, "start", "--call", "a", run], check=True)
    wait_for(lambda: run_state.read_state(run)["state"] == "finished")
    wait_for(lambda: not run_state.look(run)["supervised"])

    def files():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = files()
    for how in ("start", "run"):
        done = subprocess.run([*command, how, "--call", "b", run], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {run} holds a finished run, which is not overwritten unasked")
        assert files() == before
    with pytest.raises(launch_files.TooLate):
        launch_files.place_alone(run, "b")
    assert files() == before


def test_what_the_program_refuses_is_not_tried_again(run):
    plan(run, "raise errors.TrainingFailed('the loss is nan')", max_restarts=5)
    assert start(run).wait(30) == 1
    state = run_state.read_state(run)
    assert state["attempt"] == 1
    assert re.fullmatch(r"rank [01] on here: error: the loss is nan", state["reason"])


def test_a_stopped_rank_is_a_stall_with_its_name(run):
    # rank 0 waits for the other from the moment at which that one is stopped, as in a real job
    plan(run, "while not os.path.exists('hush'): step(1); time.sleep(0.1)\ntime.sleep(60)", stall_timeout=4)
    process = start(run)
    pid = pid_of(run, 1)
    agents_of(run, process)
    wait_for(lambda: (run / "metrics.jsonl").exists())
    os.kill(pid, signal.SIGSTOP)
    (run / "hush").touch()
    assert process.wait(30) == 1
    assert "rank 1 on here is stopped" in run_state.read_state(run)["reason"]
    nothing_left(run)


def test_a_silent_agent_is_a_lost_host(run):
    plan(run, "step(1); time.sleep(60)", host_timeout=2)
    process = start(run)
    for pid in agents_of(run, process):
        os.kill(pid, signal.SIGSTOP)
    assert process.wait(40) == 1
    seconds = re.search(r"here has not been heard of for (\d+) s", run_state.read_state(run)["reason"])
    assert seconds
    assert 2 <= int(seconds[1]) < 5  # long before the stall of 30 s
    nothing_left(run)


def test_agents_end_their_ranks_when_the_supervisor_is_gone(run):
    plan(run, "step(1); time.sleep(60)")
    process = start(run)
    agents_of(run, process)
    process.kill()
    process.wait()
    nothing_left(run, seconds=5)
    seen = run_state.look(run)
    assert (seen["lost"], seen["rebooted"]) == (True, False)
    (run / "state.json").write_text(json.dumps({**seen["state"], "boot": "of before"}))
    assert run_state.look(run)["rebooted"]
    # the first agent to notice says so; its rank's end makes the launcher kill the other, whose agent has no reason
    assert "the supervisor is gone" in "".join(log.read_text() for log in (run / "logs").glob("rank-*.log"))


def test_a_lost_agent_is_told_and_no_rank_is_blamed(run):
    plan(run, "while True: step(1); time.sleep(0.1)")
    process = start(run)
    agents_of(run, process)
    os.kill(int((run / "agent.1").read_text()), signal.SIGKILL)
    assert process.wait(30) == 1
    reason = run_state.read_state(run)["reason"]
    assert reason.startswith("the agent of rank 1 on here ended without a report, as when it or all of its host")
    nothing_left(run)


def test_a_stopped_supervisor_is_told_and_so_is_what_it_cost(run):
    plan(run, "step(1); time.sleep(60)", host_timeout=2)
    process = start(run)
    agents_of(run, process)
    assert run_state.look(run)["standstill"] == ""
    os.kill(process.pid, signal.SIGSTOP)
    wait_for(lambda: f"process {process.pid}, is stopped" in run_state.look(run)["standstill"])
    nothing_left(run)
    time.sleep(6)  # less than 5 s count as a busy host
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(30) == 1
    reason = run_state.read_state(run)["reason"]
    assert re.match(
        r"rank [01] on here was ended by its agent: nothing was received from the supervisor for 2 s; the supervisor "
        r"itself did not run for \d+ s, as after SIGSTOP",
        reason,
    ), reason


def test_a_run_folder_that_is_deleted_ends_the_run(run):
    plan(run, "step(1); time.sleep(60)")
    process = start(run)
    agents_of(run, process)
    for attempt in range(20):  # a file may be written while the folder is being removed
        shutil.rmtree(run, ignore_errors=attempt < 19)
        if not run.exists():
            break
    assert process.wait(30) == 1
    assert "was deleted while the run was going on" in process.stderr.read()
    assert not run.exists()
    nothing_left(run)


def test_what_a_supervisor_fails_of_itself_is_in_its_state(run):
    plan(run, "step(1); time.sleep(60)")
    (run / "metrics.jsonl").mkdir()
    process = start(run)
    assert process.wait(30) == 1
    state = run_state.read_state(run)
    assert (state["state"], state["ended"] > state["started"]) == ("failed", True)
    assert state["reason"].startswith("the supervisor itself failed (")
    assert "Traceback" in process.stderr.read()
    nothing_left(run)


def test_ranks_that_stop_before_the_supervisor_sees_the_request(run):
    """A step of milliseconds: rank 0 has taken the request away when the supervisor looks."""
    line = 'json.dumps({"kind": "stopped", "step": 1, "time": time.time()})'
    plan(run, f"step(1)\nif rank: time.sleep(60)\nopen('metrics.jsonl', 'a').write({line} + chr(10))\nsys.exit(3)")
    assert start(run).wait(30) == 3
    state = run_state.read_state(run)
    assert (state["state"], state["reason"], state["failures"]) == ("stopped", "on request", [])
    nothing_left(run)


def test_a_run_that_makes_no_step_is_stopped_all_the_same(run):
    plan(run, "step(1); time.sleep(60)")
    process = start(run)
    pid_of(run, 1)
    run_state.ask_to_stop(run, within=1)
    assert process.wait(30) == 3
    state = run_state.read_state(run)
    assert (state["state"], "not cleanly" in state["reason"]) == ("stopped", True)
    nothing_left(run)


def test_a_second_supervisor_is_refused_and_a_second_start_attaches(run):
    plan(run, "step(1); time.sleep(60)")
    start_command = [sys.executable, *SUPERVISE, "start", run]
    first = subprocess.run(start_command, capture_output=True, text=True, check=True)
    assert json.loads(first.stdout)["did"] == "started"
    pid = run_state.read_state(run)["pid"]
    second = start(run)
    assert second.wait(20) == 1
    assert "another supervisor is at work" in second.stderr.read()
    again = subprocess.run(start_command, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["did"] == "attached"
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not run_state.is_locked(run / run_state.SUPERVISOR_LOCK))
    assert "ended by SIGTERM" in run_state.read_state(run)["reason"]
    nothing_left(run)


def test_an_unsupervised_run_is_left_alone(run):
    plan(run, "")
    holder = subprocess.Popen(["flock", run / ".lock", "sleep", "60"])
    wait_for(lambda: run_state.look(run)["unsupervised"])
    done = subprocess.run([sys.executable, *SUPERVISE, "start", run], capture_output=True, text=True, check=False)
    holder.kill()
    assert done.returncode == 2
    assert "without a supervisor" in done.stderr


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (2, ["--resume_from_checkpoint", "auto"]),
        (
            1,
            ["--resume_from_checkpoint", "auto", "--world_size", "2", "--resume_reshard",
             "--gradient_accumulation_steps", "2"],
        ),
    ],
)  # fmt: skip
def test_fewer_hosts_make_the_same_samples_in_more_steps(run, hosts, expected, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's handlers stay
    plan(run, "", hosts={"a": "127.0.0.1", "b": "127.0.0.2"})
    one = supervisor.Supervisor(run, [])
    (run / "metrics.jsonl").write_text("")
    assert one._arguments_of_restart(dict(list(one.plan.hosts.items())[:hosts])) == expected


def test_the_state_is_written_on_a_full_disk_too(run, monkeypatch):
    plan(run, "")
    state = StateFile(run, state="running")
    real = Path.open

    def full(path, *args, **kwargs):
        if path.name.endswith(".tmp") and state.reserve.exists():
            raise OSError(28, "No space left on device")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    state.write(state="failed")
    assert run_state.read_state(run)["state"] == "failed"
