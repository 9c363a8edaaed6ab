"""Under the real mpirun of the environment: a rank that fails ends the whole job."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdtune.launch.run_folder import Run
from tests.conftest import free_port, write_job

PYTHON = Path(__file__).parents[1]
PREFIX = Path(sys.prefix)

# the test injects a failure into rank 1; how it is handled, there and on rank 0, is the program's own code
RANK = """
import os, sys
from sdtune import cli
from sdtune.settings import Job, read_yaml
from sdtune import errors
from sdtune.models.sd import StableDiffusion, StableDiffusionNetworks
from sdtune.training import distributed
from sdtune.training import trainer

job = read_yaml(sys.argv[1], Job)
if os.environ["PMI_RANK"] == "1":
    {failure}
cli.run(lambda: trainer.train(job) and None)
"""

NOT_FINITE = """
    real = StableDiffusionNetworks.denoising_losses
    StableDiffusionNetworks.denoising_losses = lambda *a: real(*a) * float("nan")
"""
BAD_INPUT = """
    def check_job(job):
        raise errors.BadInput("a picture is broken")
    distributed.check_job = check_job
"""
KILLED = """
    import signal
    StableDiffusion.load = lambda family, job: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (NOT_FINITE, "error: the loss is nan at step 1, rank 1, picture"),
        (BAD_INPUT, "error: a picture is broken"),
        (KILLED, "KILLED BY SIGNAL: 9"),
    ],
    ids=["not-finite", "bad-input", "killed"],
)
def test_a_failing_rank_ends_the_job_immediately(mapping, tmp_path, failure, said):
    mpirun = PREFIX / "bin" / "mpirun"
    assert mpirun.exists(), f"{mpirun}: these tests run in an environment made by the roles"
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(failure=failure.strip()), encoding="utf-8")
    mapping["training"]["world_size"] = 2
    job = write_job(tmp_path / "job.yaml", mapping)
    env = {
        **os.environ,
        "PATH": f"{PREFIX / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(PYTHON),
        "I_MPI_ROOT": str(PREFIX),
        "FI_PROVIDER_PATH": str(PREFIX / "lib"),
        "FI_PROVIDER": "tcp",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    began = time.monotonic()
    done = subprocess.run(
        [mpirun, "-n", "2", sys.executable, script, job],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert not Run(mapping["run_dir"]).finished.exists()
    assert time.monotonic() - began < 200  # no rank waited for gloo's timeout of 30 minutes
