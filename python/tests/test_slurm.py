"""Runs that Slurm starts, with fakes of its commands: submitting, the queue, and what happens inside a job."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jinja2
import pytest

from sdtune.errors import BadInput
from sdtune.launch import allocation, binding, launcher_output, side_by_side, submit
from sdtune.launch.batch_job import BatchJob
from sdtune.launch.dealing import Request
from sdtune.launch.state import StateFile
from standalone import launch_files, run_state
from tests.conftest import FINISH
from tests.test_supervisor import LAUNCH, RANK, agents_of

PYTHON = Path(__file__).parents[1]

# a fake of each command: it notes how it was called, and does what the file of its name in the folder says
FAKE = """#!/bin/bash
here=$(dirname "$0")
echo "${0##*/} $*" >> "$here/calls"
[ ! -e "$here/answer.${0##*/}" ] || . "$here/answer.${0##*/}"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Fakes of Slurm's commands; ``slurm(sbatch="echo 7")`` says what one does, and the result lists the calls."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def set_answers(**answers):
        for name, text in answers.items():
            (folder / f"answer.{name}").write_text(text)
        calls = folder / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    return set_answers


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with the files that start a batch job."""
    monkeypatch.setenv("PYTHONPATH", str(PYTHON))
    folder = tmp_path / "runs" / "r"
    (folder / "logs").mkdir(parents=True)
    (folder / "launch.sh").write_text(LAUNCH)
    (folder / "launch.sh").chmod(0o755)
    (folder / "job.yaml").write_text("training:\n  max_train_steps: 9\n")
    (folder / "job.sbatch").write_text("#!/bin/sh\n")
    facts = {
        "launcher": "slurm",
        "hosts": {},
        "ranks_per_node": 2,
        "gradient_accumulation_steps": 1,
        "stall_timeout": 120,
        "start_timeout": 120,  # on a busy machine
        "host_timeout": 20,
        "host_wait": 1,
        "max_restarts": 0,
        "on_host_loss": "fail",
        "signal_seconds": 40,
    }
    (folder / "supervisor.json").write_text(json.dumps(facts))
    return folder


def queue(run, state, reason="None", start="N/A", job="7", nodes=""):
    """What squeue says."""
    return f"cat <<< {shlex.quote(f'{job}|{state}|{reason}|{start}|{nodes}|{run}')}"


# --- from the login node ------------------------------------------------------------------------------------------


def test_a_run_is_submitted_once(run, slurm):
    slurm(sbatch="echo '7;cluster'")
    assert submit.submit(run, ["--overwrite"], None) == "started"
    assert json.loads((run / "slurm.json").read_text())["job"] == "7"
    assert f"sbatch --parsable {run}/job.sbatch --overwrite" in slurm(squeue=queue(run, "PENDING"))
    assert submit.submit(run, [], None) == "attached"


def test_a_job_that_slurm_does_not_take_is_refused_with_its_words(run, slurm):
    slurm(sbatch="echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1")
    with pytest.raises(BadInput, match="Slurm does not take the job: Batch job submission failed: Invalid qos"):
        submit.submit(run, [], None)


@pytest.mark.parametrize(
    ("reason", "start", "words", "never"),
    [
        ("Priority", "2026-11-27T03:00:00", "pending (Priority), expected to start at 2026-11-27 03:00:00", False),
        ("Resources", "N/A", "pending (Resources)", False),
        ("PartitionTimeLimit", "N/A", "(PartitionTimeLimit): its time limit is above what is allowed; lower", True),
        ("Job's account not known, so it can't use this partition", "N/A", "set slurm_account to one", True),
        ("JobHeldUser", "N/A", "it is held; scontrol release 7 lets it start", True),
    ],
)
def test_a_pending_job_says_what_it_waits_for(run, slurm, reason, start, words, never):
    slurm(squeue=queue(run, "PENDING", reason, start))
    seen = run_state.look(run)
    assert seen["supervised"]
    assert words in seen["state"]["words"]
    assert bool(seen["state"]["never"]) == never


def test_a_job_that_slurm_has_not_looked_at_is_pending_without_a_reason(run, slurm):
    slurm(squeue=queue(run, "PENDING", "None"))
    assert run_state.look(run)["state"]["words"] == "is job 7, pending"


def test_another_run_of_that_name_is_not_this_one(run, slurm):
    slurm(squeue=queue("/elsewhere/runs/r", "RUNNING"))
    assert not run_state.look(run)["supervised"]


def test_a_requeued_job_keeps_what_it_had(run, slurm):
    failure = {"attempt": 1, "why": "n2 has not been heard of"}
    StateFile(run, state="requeued", job="7", attempt=1, attempt_started=1.0, failures=[failure]).write()
    slurm(squeue=queue(run, "PENDING", "BeginTime"))
    seen = run_state.look(run)
    assert seen["state"]["words"] == "is job 7, again pending (BeginTime)"
    assert seen["state"]["failures"] == [failure]


@pytest.mark.parametrize(
    ("says", "state", "reason"),
    [
        ("JobState=CANCELLED Reason=None", "stopped", "from outside, as by scancel"),
        ("JobState=NODE_FAIL Reason=NodeDown", "failed", "job 7 ended without a last word (NODE_FAIL, NodeDown); "),
        ("", "failed", "job 7 ended without a last word (Slurm has forgotten it); "),
    ],
)
def test_a_job_that_left_the_queue_without_a_last_word(run, slurm, says, state, reason):
    StateFile(run, state="running", job="7", started=1.0, failures=[]).write()
    slurm(scontrol=f"echo 'JobId=7 {says}'")
    seen = run_state.look(run)
    assert (seen["supervised"], seen["state"]["state"]) == (False, state)
    assert seen["state"]["reason"].startswith(reason)


def test_a_job_that_was_cancelled_before_it_started(run, slurm):
    StateFile(run, state="failed", job="5", started=1.0, reason="of an earlier call").write()
    (run / "slurm.json").write_text(json.dumps({"job": "7", "time": time.time()}))
    slurm(scontrol="echo 'JobId=7 JobState=CANCELLED Reason=None'")
    assert run_state.look(run)["state"]["reason"] == "from outside, as by scancel, before it started"


def test_a_run_goes_on_while_slurm_does_not_answer(run, slurm):
    StateFile(run, state="running", job="7", started=1.0, attempt_started=1.0).write()
    slurm(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    seen = run_state.look(run)
    assert seen["supervised"]
    assert "Unable to contact slurm controller" in seen["remark"]


def test_a_stop_takes_a_pending_job_out_of_the_queue(run, slurm):
    slurm(squeue=queue(run, "PENDING"))
    run_state.ask_to_stop(run, 60)
    assert "scancel 7" in slurm()
    assert not (run / "stop").exists()
    slurm(squeue=queue(run, "RUNNING"))
    run_state.ask_to_stop(run, 60)
    assert (run / "stop").exists()


def test_a_run_is_found_by_any_path_of_its_folder(run, slurm):
    link = run.parent.with_name("link")
    link.symlink_to(run.parent)
    for asked, queued in ((run, link / "r"), (link / "r", run)):
        slurm(squeue=queue(queued, "PENDING"))
        assert run_state.queued_job(asked)["job"] == "7"
        assert submit.submit(asked, [], None) == "attached"
        assert [row["state"] for row in run_state.table(asked.parent, ["r"])["rows"]] == ["waiting"]


@pytest.fixture
def several(run):
    """Three runs: r, s, t."""
    for name in "st":
        shutil.copytree(run, run.with_name(name))
    return run.parent


@pytest.mark.parametrize(("at_once", "waits"), [(0, [None, None, None]), (2, [None, None, 0]), (1, [None, 0, 1])])
def test_of_several_runs_some_go_on_at_once(several, slurm, at_once, waits):
    """Each waits for the end of the one so many places before it."""
    slurm(sbatch='wc -l < "$here/calls"')
    side_by_side.submit_all(several, Request(call="", runs=list("rst"), hosts={}, hosts_per_run=0, at_once=at_once))
    jobs = [submit.newest_job(several / name) for name in "rst"]
    calls = [call for call in slurm() if call.startswith("sbatch")]
    assert [re.findall(r"--dependency=(\S+)", call) for call in calls] == [
        [] if number is None else [f"afterany:{jobs[number]}"] for number in waits
    ]


def test_a_run_that_was_going_on_is_not_submitted_when_it_has_ended(several, slurm):
    """It finished while the call that was to follow it prepared the others."""
    (several / "s" / "finished.json").write_text("{}")
    for name in "rt":
        shutil.copytree(several / name, launch_files.staged(several / name, "now"))
    slurm(sbatch="echo 8")
    side_by_side.submit_all(several, Request(call="now", runs=list("rst"), hosts={}, hosts_per_run=0, at_once=0))
    assert [call.split()[-1].split("/")[-2] for call in slurm() if call.startswith("sbatch")] == ["r", "t"]


def test_runs_that_wait_for_one_that_cannot_start_are_not_waited_for(several, slurm):
    held, waits = queue(several / "r", "PENDING", "JobHeldUser"), queue(several / "t", "PENDING", "Dependency", job="9")
    slurm(squeue=f"{held};{waits}")
    seen = run_state.table(several, ["r", "t"])
    assert not seen["going"]
    assert seen["rows"][1]["never"] == "it waits for the end of one that cannot start"
    slurm(squeue=f"{held};{waits};{queue(several / 's', 'PENDING', 'Resources', job='8')}")
    seen = run_state.table(several, list("rst"))
    assert seen["going"]
    assert "never" not in seen["rows"][2]


def test_the_table_of_several_jobs_asks_slurm_once(several, slurm):
    StateFile(several / "s", state="failed", job="8", started=1.0, reason="the loss is nan", hosts=["n1"]).write()
    slurm(
        squeue=queue(several / "r", "PENDING", "JobHeldUser")
        + ";"
        + queue(several / "t", "RUNNING", job="9", nodes="n2")
    )
    StateFile(several / "t", state="running", job="9", attempt_started=1.0, hosts=["n2"]).write()
    seen = run_state.table(several, list("rst"))
    assert [(row["state"], row["hosts"]) for row in seen["rows"]] == [
        ("waiting", []),
        ("failed", ["n1"]),
        ("running", ["n2"]),
    ]
    assert seen["rows"][0]["never"].startswith("it is held")
    assert seen["going"]
    assert [call.split()[3] for call in slurm() if call.startswith("squeue")] == ["--name=sdtune-r,sdtune-s,sdtune-t"]
    slurm(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert "Unable to contact" in run_state.table(several, ["t"])["remark"]


# --- inside the job -----------------------------------------------------------------------------------------------


def test_hosts_are_those_of_the_job(slurm):
    node = "NodeName={} Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName={}"
    lines = "\\n".join(node.format(name, name) for name in ("n1", "n2"))
    slurm(scontrol=f'[ "$2" = hostnames ] && printf "n1\\nn2\\n" || printf "{lines}\\n"')
    found = allocation.Allocation.of({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": "2"})
    assert found == allocation.Allocation(job="7", attempt=3, hosts={"n1": "127.0.0.1", "n2": "127.0.0.1"})
    with pytest.raises(BadInput, match=r"type sbatch job\.sbatch in its folder"):
        allocation.Allocation.of({})


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [
        (range(4), [[0, 1], [2, 3]]),  # Slurm has bound nothing: a share for each
        ([2, 3], [[2, 3], [2, 3]]),  # it has bound this rank
        ([5], [[5], [5]]),  # to too few, which the rank refuses
    ],
)
def test_cores_of_a_rank(allowed, cores):
    assert [binding.cores_of_rank(list(allowed), rank, 2, 2) for rank in (0, 1)] == cores


def test_a_rank_on_one_core_is_refused():
    with pytest.raises(BadInput, match="a rank of 28 threads was bound to 1 core; ask Slurm for whole nodes"):
        binding.check_cores(28, 1)
    binding.check_cores(28, 28)


def test_what_srun_says_of_ranks():
    lines = ["srun: error: n2: task 1: Killed", "srun: error: n1: tasks 0,2-3: Terminated", "srun: error: n1: whatever"]
    assert launcher_output.killed_ranks(lines) == [(1, 9), (0, 15), (2, 15), (3, 15)]


# the program of a batch job: as `sdtune.launch run`, with an allocation of this host
JOB = """
import sys
from pathlib import Path
from sdtune.launch.allocation import Allocation
from sdtune.launch.batch_job import BatchJob
attempt = int(sys.argv[2])
sys.exit(BatchJob(Path(sys.argv[1]), [], Allocation(job="7", attempt=attempt, hosts={"here": "127.0.0.1"})).supervise())
"""


def start(run, rank, attempt=1, program=JOB):
    """Start the batch job's program; ``rank`` is what each rank does."""
    (run / "rank.py").write_text(FINISH + RANK)
    (run / "what.py").write_text(rank)
    return subprocess.Popen([sys.executable, "-P", "-c", program, run, str(attempt)], stderr=subprocess.PIPE, text=True)


STEPS = """
for n in range(1, 9):
    step(n)
    time.sleep(0.2)
    if os.path.exists("stop"):
        if rank == 0:
            os.makedirs(f"checkpoints/step-{n:06}")
            with open("metrics.jsonl", "a") as f:
                f.write(json.dumps({"kind": "stopped", "step": n, "time": time.time()}) + chr(10))
        while '"stopped"' not in open("metrics.jsonl").read():
            time.sleep(0.05)  # all ranks stop together
        raise errors.Stopped("on request")
finish()
"""


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_before_its_time_limit_a_job_saves_a_checkpoint_and_asks_to_start_again(run, slurm):
    slurm(scontrol="kill $PPID")  # Slurm ends a job that it starts again
    job = start(run, STEPS)
    wait_for(lambda: run_state.progress(run, 0).get("step"))
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 0
    state = run_state.read_state(run)
    assert (state["state"], state["reason"]) == (
        "requeued",
        "its time limit came near, and it goes on from its checkpoint",
    )
    assert "scontrol requeue 7" in slurm()
    assert start(run, "finish()", attempt=2).wait(120) == 0
    state = run_state.read_state(run)
    assert (state["state"], state["attempt"]) == ("finished", 2)
    assert "arguments: --resume_from_checkpoint auto" in (run / "logs/launch.log").read_text()


def test_a_job_whose_time_limit_comes_before_its_first_checkpoint_has_failed(run, slurm):
    job = start(run, STEPS.replace('os.makedirs(f"checkpoints/step-{n:06}")', "pass"))
    wait_for(lambda: run_state.progress(run, 0).get("step"))
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 1
    assert "came before its first checkpoint; raise slurm_time_limit" in run_state.read_state(run)["reason"]
    assert not [call for call in slurm() if "requeue" in call]


def test_a_cancelled_job_was_stopped_from_outside(run, slurm):
    job = start(run, "time.sleep(300)")
    agents_of(run, job)
    job.terminate()
    assert job.wait(120) == 3
    assert run_state.read_state(run)["reason"] == "from outside, as by scancel"
    assert slurm() == []


# a fake of generate_images.py: three class pictures are missing, and each takes its time
DRAWING = """
import json, os, pathlib, sys, time
folder = pathlib.Path("class")
if "--check" in sys.argv:
    drawn = len(list(folder.glob("drawn/*.png")))
    print(json.dumps({"missing": 3 - drawn, "folder": str(folder.resolve())}))
    sys.exit()
assert sys.argv[1:] == ["--class-pictures", "job.yaml", "--allocation"], sys.argv
WHAT
"""
DRAW_ALL = """
(folder / "drawn").mkdir(parents=True, exist_ok=True)
for n in range(3):
    if not (folder / f"drawn/{n}.png").exists():
        time.sleep(SECONDS)
        (folder / f"drawn/{n}.png").touch()
"""
DRAWS = JOB.replace("attempt =", "from sdtune.launch import class_pictures as c; c.PROGRAM = 'draw.py'\nattempt =")


@pytest.fixture
def drawing(run):
    """Start a job that draws class pictures first; ``what``: how its fake of the program draws."""
    facts = json.loads((run / "supervisor.json").read_text())
    (run / "supervisor.json").write_text(json.dumps({**facts, "class_pictures": True}))

    def begin(what, attempt=1):
        (run / "draw.py").write_text(DRAWING.replace("WHAT", what))
        return start(run, "finish()", attempt, program=DRAWS)

    return begin


def test_class_pictures_are_drawn_before_the_ranks_start(run, drawing):
    assert drawing(DRAW_ALL.replace("SECONDS", "0")).wait(120) == 0
    assert len(list(run.glob("class/drawn/*"))) == 3
    assert run_state.read_state(run)["state"] == "finished"


def test_a_drawing_that_the_time_limit_ends_goes_on_in_the_next_start(run, slurm, drawing):
    slurm(scontrol="kill $PPID")
    job = drawing(DRAW_ALL.replace("SECONDS", "n * 300"))
    wait_for(lambda: list(run.glob("class/drawn/*")))
    assert run_state.read_state(run)["doing"] == "draws the class pictures"
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 0
    state = run_state.read_state(run)
    assert (state["state"], state["reason"].endswith("; 1 class pictures stay")) == ("requeued", True)
    assert drawing(DRAW_ALL.replace("SECONDS", "0"), attempt=2).wait(120) == 0
    assert run_state.read_state(run)["state"] == "finished"


@pytest.mark.parametrize(
    ("what", "number", "code", "state", "reason"),
    [
        ("sys.exit('error: no memory')", None, 1, "failed", "the class pictures were not drawn: no memory (log:"),
        ("time.sleep(300)", signal.SIGUSR1, 1, "failed", "its time limit came before it had drawn one class picture;"),
        ("time.sleep(300)", signal.SIGTERM, 3, "stopped", "from outside, as by scancel"),
        ("time.sleep(300)", None, 3, "stopped", "on request, while it drew class pictures, of which 0 are new"),
    ],
)
def test_a_drawing_that_does_not_end_well(run, slurm, drawing, what, number, code, state, reason):
    job = drawing(what)
    if "sleep" in what:
        wait_for(lambda: "doing" in run_state.read_state(run))
        job.send_signal(number) if number else run_state.ask_to_stop(run, 60)
    assert job.wait(120) == code
    found = run_state.read_state(run)
    assert (found["state"], found["reason"][: len(reason)]) == (state, reason)


def test_a_step_for_other_programs_has_all_of_a_node():
    """What a job asks for each rank does not count for it."""
    command = allocation.step_on("n2", ["generate"])
    assert command[:2] == ["env", "--unset=SLURM_CPUS_PER_TASK"]
    assert not [word for word in command if word.startswith(("--exact", "--cpus-per-task"))]


def test_a_rank_that_fails_ends_the_job(run, slurm):
    assert start(run, "if rank == 1: raise errors.TrainingFailed('the loss is nan')\ntime.sleep(300)").wait(120) == 1
    state = run_state.read_state(run)
    assert (state["state"], state["reason"]) == ("failed", "rank 1 on here: error: the loss is nan")
    assert slurm() == []


def test_a_host_that_is_lost_lets_slurm_start_the_job_again(run, slurm):
    """All agents of the host end at once, without a report, as when its power is cut."""
    slurm(scontrol="kill $PPID")
    (run / "checkpoints/step-000003").mkdir(parents=True)
    job = start(run, "step(1)\ntime.sleep(300)")
    agents_of(run, job)
    for rank in (0, 1):
        os.kill(int((run / f"agent.{rank}").read_text()), 9)
    assert job.wait(120) == 0
    state = run_state.read_state(run)
    assert state["state"] == "requeued"
    assert "all agents on here ended at once" in state["failures"][0]["why"]


@pytest.mark.parametrize(("said", "state"), [("srun: error: here: task 1: Killed", "failed"), ("nothing", "requeued")])
def test_how_a_rank_was_killed_is_told_by_the_daemon_of_its_host(run, slurm, said, state):
    """Where that says nothing, it is gone too, and with it the host."""
    slurm(scontrol="kill $PPID")
    launch = LAUNCH.replace('kill -9 "$first" "$second" 2>/dev/null', f'kill -9 "$first" 2>/dev/null; echo "{said}"')
    (run / "launch.sh").write_text(launch)
    start(run, "if rank == 1: os.kill(os.getpid(), 9)\ntime.sleep(300)").wait(120)
    found = run_state.read_state(run)
    assert (found["state"], found["failures"][0]["rank"]) == (state, 1)


def test_an_attempt_that_was_lost_with_its_first_host_is_noted(run, slurm):
    StateFile(run, state="running", job="7", started=time.time(), attempt=1, failures=[]).write()
    assert start(run, "finish()", attempt=2).wait(120) == 0
    assert "first host was lost" in run_state.read_state(run)["failures"][0]["why"]


@pytest.mark.parametrize(("submitted", "asked", "kept"), [("7", 100, True), ("7", 300, False), ("6", 100, False)])
def test_a_job_that_starts_has_got_a_request_to_stop(run, slurm, submitted, asked, kept):
    """One that is older than its submission was meant for an earlier job; seconds before now."""
    for name, content, age in ((run_state.SUBMITTED, {"job": submitted}, 200), (run_state.STOP, {}, asked)):
        (run / name).write_text(json.dumps(content))
        os.utime(run / name, (time.time() - age,) * 2)
    BatchJob(run, [], allocation.Allocation(job="7", attempt=1, hosts={"here": "127.0.0.1"}))._open()
    assert (run / run_state.STOP).exists() == kept


def test_slurm_may_refuse_to_start_a_job_again(run, slurm, monkeypatch):
    slurm(scontrol="echo 'Requeue disabled' >&2; exit 1")
    (run / "checkpoints/step-000003").mkdir(parents=True)
    there = allocation.Allocation(job="7", attempt=1, hosts={"here": "127.0.0.1"})
    assert BatchJob(run, [], there)._again("it was lost") == 1
    assert (
        "it was lost; Slurm does not start it again (scontrol requeue 7: Requeue" in run_state.read_state(run)["reason"]
    )


# --- the scripts of a run, with a fake srun --------------------------------------------------------------------------

# two ranks on this host, their lines marked; what fails ends the other
SRUN = f"""#!{sys.executable}
import os, subprocess, sys, threading
command = sys.argv[[a.endswith("rank.sh") for a in sys.argv].index(True):]
asked = dict(a.removeprefix("--").partition("=")[::2] for a in sys.argv[1:] if a.startswith("--"))
assert asked["mpi"] == "pmi2" and "label" in asked, asked
ranks = []
for rank in range(int(asked["ntasks"])):
    slurm = {{"SLURM_PROCID": rank, "SLURM_NTASKS": asked["ntasks"], "SLURM_LOCALID": rank}}
    environment = os.environ | {{name: str(value) for name, value in slurm.items()}}
    output = {{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}}
    ranks.append(subprocess.Popen(command, env=environment, **output))
def copy(number):
    for line in ranks[number].stdout:
        print(f"{{number}}: {{line}}", end="", flush=True)
    if ranks[number].wait():
        print(f"srun: error: here: task {{number}}: Exited with exit code", flush=True)
        [other.kill() for other in ranks]
copies = [threading.Thread(target=copy, args=(number,)) for number in range(len(ranks))]
[one.start() for one in copies]
[one.join() for one in copies]
sys.exit(max(rank.returncode != 0 for rank in ranks))
"""
PROGRAM = """
import os, sys
sys.path.insert(0, {path!r})
from sdtune import cli, errors
{finish}
rank = int(os.environ.get("PMI_RANK", -1))
def main():
    if "--check" in sys.argv:
        open("stop", "w").close()  # a request that comes while the run starts
        return
    told = (os.environ[name] for name in ("PMI_SIZE", "MPI_LOCALRANKID", "MASTER_ADDR"))
    print(rank, *told, "SLURM_PROCID" in os.environ, flush=True)
    {what}
cli.run(main)
"""


def render(run, code):
    """Write launch.sh and rank.sh as the role does for Slurm."""
    for name in ("launch.sh", "rank.sh"):
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
        environment.filters |= {"quote": lambda text: f"'{text}'", "bool": bool}
        text = environment.from_string((PYTHON.parent / "templates" / f"{name}.j2").read_text()).render(
            ansible_managed="Ansible managed",
            cluster_code_path=str(code),
            cluster_launcher="slurm",
            slurm_nodes=1,
            _launch_config_world_size=2,
            _launch_config_ranks=2,
            launch_config_threads=1,
            launch_config_pin=True,
            launch_config_backend="gloo",
        )
        (run / name).write_text(text)
        (run / name).chmod(0o755)
    path = f"{Path(sys.executable).parent}:$PATH"
    (run / "env.sh").write_text(
        f"export PATH={path} PYTHONPATH={PYTHON} LD_PRELOAD= OMP_NUM_THREADS=1\n"
        "export SDTUNE_LAUNCHER=slurm SDTUNE_PORTS=21100-21199\n"
    )


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("assert os.path.exists('stop'); finish()", 0, None),
        ("if rank == 1: raise errors.TrainingFailed('the loss is nan')", 1, "rank 1 on here: error: the loss is nan"),
    ],
)
def test_srun_starts_the_ranks(run, slurm, tmp_path, what, code, reason):
    render(run, tmp_path)
    (tmp_path / "textual_inversion.py").write_text(PROGRAM.format(path=str(PYTHON), finish=FINISH, what=what))
    slurm(scontrol='[ "$2" = hostnames ] && echo here || echo "NodeName=here NodeAddr=127.0.0.1"')
    (tmp_path / "slurm/srun").write_text(SRUN)
    (tmp_path / "slurm/srun").chmod(0o755)
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SDTUNE_ENVIRONMENT": str(run)}
    done = subprocess.run([sys.executable, "-P", "-m", "sdtune.launch", "run", run], env=environment, check=False)
    state = run_state.read_state(run)
    assert (done.returncode, state.get("reason")) == (code, reason), (run / "logs/launch.log").read_text()
    lines = (run / "logs/launch.log").read_text().splitlines()
    assert code or {"0: 0 2 0 127.0.0.1 False", "1: 1 2 1 127.0.0.1 False"} <= set(lines)
