"""templates/launch.sh and rank.sh under the real mpirun and the real supervisor; only the training is a fake."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jinja2
import pytest

from sdtune.launch import processes
from standalone import run_state
from tests.conftest import FINISH

PYTHON = Path(__file__).parents[1]
TEMPLATES = PYTHON.parent / "templates"
PREFIX = Path(sys.prefix)

# in place of textual_inversion.py: {what} is what a rank does
PROGRAM = """
import fcntl, os, signal, sys, time
sys.path.insert(0, {path!r})
from sdtune import cli, errors
{finish}
arguments, rank = sys.argv[1:], int(os.environ.get("PMI_RANK", -1))

def lose_connection():
    # Hydra does not end a rank when another one has left: its connection to the other does
    with open(f"alive-{{1 - rank}}", "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
    raise RuntimeError("[gloo] Connection closed by peer")

def main():
    if "--check" in arguments:
        {check}
        return
    alive = open(f"alive-{{rank}}", "a")
    fcntl.flock(alive, fcntl.LOCK_EX)
    open(f"ready-{{rank}}", "w").close()
    while not (os.path.exists("ready-0") and os.path.exists("ready-1")):
        time.sleep(0.01)
    {what}

cli.run(main)
"""
ENVIRONMENT = f"""
export PATH={PREFIX / "bin"}:$PATH PYTHONPATH={PYTHON} LD_PRELOAD=
export MASTER_ADDR=127.0.0.1 SDTUNE_PORTS=21000-21099
export I_MPI_ROOT={PREFIX} FI_PROVIDER_PATH={PREFIX / "lib"} FI_PROVIDER=tcp
"""


@pytest.fixture
def launch(tmp_path):
    """Render the scripts into a run folder, start them; what is left is killed."""
    run = tmp_path / "runs" / "night"
    run.mkdir(parents=True)

    def start(what, *, check="pass", supervised=True, environment=""):
        assert (PREFIX / "bin/mpirun").exists(), "these tests run in an environment made by the roles"
        code = tmp_path / "code"
        code.mkdir()
        (code / "textual_inversion.py").write_text(
            PROGRAM.format(path=str(PYTHON), what=what, check=check, finish=FINISH)
        )
        for name in ("launch.sh", "rank.sh"):
            templates = jinja2.Environment(undefined=jinja2.StrictUndefined)
            templates.filters["quote"] = lambda text: f"'{text}'"
            text = templates.from_string((TEMPLATES / f"{name}.j2").read_text()).render(
                ansible_managed="Ansible managed",
                cluster_code_path=str(code),
                _launch_config_world_size=2,
                _launch_config_ranks=2,
                launch_config_world_size=2,
                launch_config_ranks=2,
                launch_config_backend="gloo",
                cluster_launcher="hydra",
            )
            (run / name).write_text(text)
            (run / name).chmod(0o755)
        (run / "env.sh").write_text(ENVIRONMENT + environment)
        (run / "nodefile").write_text("127.0.0.1\n")
        (run / "job.yaml").write_text("training:\n  max_train_steps: 9\n")
        plan = {
            "hosts": {"here": "127.0.0.1"}, "ranks_per_node": 2, "gradient_accumulation_steps": 1, "stall_timeout": 60,
            "start_timeout": 60, "host_timeout": 30, "host_wait": 1, "max_restarts": 0, "on_host_loss": "fail",
        }  # fmt: skip
        (run / "supervisor.json").write_text(json.dumps(plan))
        supervise = [sys.executable, "-P", "-m", "sdtune.launch", "run", run]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SDTUNE_")}
        done = subprocess.run(
            supervise if supervised else [run / "launch.sh"], env=variables | {"PYTHONPATH": str(PYTHON)},
            timeout=150, check=False, capture_output=True, text=True,
        )  # fmt: skip
        return run, done.returncode

    yield start
    processes.sweep(str(run))


@pytest.mark.skipif(not shutil.which("setpriv"), reason="a host of a cluster has util-linux")
@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("if rank == 1: raise KeyError('surprise')\n    lose_connection()", "rank 1 on here: KeyError: 'surprise'"),
        (
            "if rank == 0: raise OSError(28, 'No space left on device')\n    lose_connection()",
            "rank 0 on here: OSError: [Errno 28] No space left on device",
        ),
        (
            "if rank == 1: raise errors.TrainingFailed('the loss is nan')\n    lose_connection()",
            "rank 1 on here: error: the loss is nan",
        ),
        (
            "time.sleep(2)\n    if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n    lose_connection()",
            "rank 1 on here was killed by signal 9",
        ),
        (
            "time.sleep(2)\n    if rank == 1: os._exit(7)\n    lose_connection()",
            "rank 1 on here ended without an error message",
        ),
    ],
    ids=["exception", "full-disk", "failure", "killed", "silent"],
)
def test_a_rank_that_fails(launch, what, why):
    run, code = launch(what)
    state = run_state.read_state(run)
    assert (code, state["reason"]) == (1, why)
    assert not processes.processes_of(str(run))


@pytest.mark.parametrize("supervised", [True, False])
def test_ranks_that_finish(launch, supervised):
    run, code = launch("open(f'done-{rank}', 'w').close(); finish()", supervised=supervised)
    assert code == 0
    assert {path.name for path in run.glob("done-*")} == {"done-0", "done-1"}
    assert not list((run / "logs").glob("error-*"))


def test_launch_sh_refuses_before_it_starts_a_rank(launch):
    run, code = launch("time.sleep(60)", check="raise errors.BadInput('no picture; add one')")
    assert (code, run_state.read_state(run)["reason"]) == (2, "no picture; add one")


def test_a_check_that_is_killed_is_told_as_that(launch):
    run, code = launch("time.sleep(60)", check="os.kill(os.getpid(), signal.SIGKILL)")
    assert (code, run_state.read_state(run)["reason"]) == (1, "the check of the job was killed by signal 9")


def test_without_a_supervisor_a_killed_rank_ends_the_launch(launch):
    """Hydra itself does it, on the word of rank.sh; the other rank would sleep for minutes."""
    began = time.monotonic()
    run, code = launch("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n    time.sleep(300)", supervised=False)
    assert code != 0
    assert time.monotonic() - began < 120
    assert not processes.processes_of(str(run))


@pytest.mark.parametrize("supervised", [True, False])
def test_a_rank_that_is_killed_before_it_has_an_agent_ends_the_launch(launch, supervised):
    """Hydra notices at once; the supervisor reads its report, for which it waits a few seconds more."""
    began = time.monotonic()
    death = '[ "${PMI_RANK:-}" != 1 ] || kill -9 $$\n'
    run, code = launch("time.sleep(300)", supervised=supervised, environment=death)
    assert code != 0
    assert time.monotonic() - began < 60  # of which a busy machine needs most to start Python
    if supervised:
        assert run_state.read_state(run)["reason"] in (
            "rank 1 on here was killed by signal 9",
            "one of ranks 0, 1 was killed by signal 9 before it had an agent",  # Hydra was faster than rank 0
        )
    assert not processes.processes_of(str(run))


def test_an_agent_that_is_killed_before_it_reaches_the_supervisor_ends_the_launch(launch, tmp_path):
    began = time.monotonic()
    program = tmp_path / "bin/setsid"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    killed = f'[ "${{PMI_RANK:-}}" != 1 ] || export PATH={program.parent}:$PATH\n'
    run, code = launch("time.sleep(300)", environment=killed)
    assert code == 1
    assert run_state.read_state(run)["reason"] in (
        "rank 1 on here: the agent of this rank ended before it reached the supervisor",
        "rank 0 on here was killed by signal 9",  # Hydra ended the job before it passed on what rank 1 printed
    )
    assert time.monotonic() - began < 60
    assert not processes.processes_of(str(run))


def test_without_a_supervisor_the_error_is_in_the_run_folder(launch):
    began = time.time()
    run, code = launch("if rank == 1: raise errors.BadInput('a picture is broken')", supervised=False)
    assert code != 0
    error = json.loads((run / "logs/error-1.json").read_text())
    assert (error["kind"], error["message"]) == ("bad_input", "a picture is broken")
    assert error["time"] >= began
