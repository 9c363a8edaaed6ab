"""What programs keep out of what a host's environment brings along."""

import json
import os
import subprocess
import sys

import pytest

from sdtune.host import environment
from tests.conftest import PYTHON

FOREIGN = ["SLURM_JOBID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "ACCELERATE_USE_DEEPSPEED", "PYTHONHOME"]
FOREIGN += ["PYTHONOPTIMIZE", "USE_TORCH", "USE_TF", "DIFFUSERS_SLOW_IMPORT", "TORCH_LOGS"]
OWN = ["ACCELERATE_USE_CPU", "ACCELERATE_CONFIG_FILE", "PMI_RANK", "HOME", "ONEDNN_MAX_CPU_ISA", "LS_COLORS"]
PROGRAM = """
import json, os, sys
from sdtune import cli
cli.run(lambda: print(json.dumps([sys.path, dict(os.environ)])), preload={preload})
"""


def test_what_is_foreign():
    assert environment.foreign([*FOREIGN, *OWN]) == FOREIGN


def run(tmp_path, preload, variables):
    """The module search path and the variables of a program that is started with these variables."""
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(PYTHON)!r})\n" + PROGRAM.format(preload=preload))
    done = subprocess.run(
        [sys.executable, program], env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True,
        check=True, cwd=tmp_path,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("preload", [True, False])
def test_a_program_among_others(tmp_path, preload):
    """No package of theirs, no setting of theirs; a rank keeps its libraries, another program starts without them."""
    site = tmp_path / "foreign"
    site.mkdir()
    (site / "typing.py").write_text("raise ImportError('a module of another Python')")
    variables = {"PYTHONPATH": str(site), "LD_PRELOAD": "/lib/x86_64-linux-gnu/libm.so.6", "SLURM_JOBID": "7"}
    variables |= {"ACCELERATE_USE_DEEPSPEED": "true", "OMP_NUM_THREADS": "3"}
    path, found = run(tmp_path, preload, variables)
    assert str(site) not in path
    assert found["PYTHONNOUSERSITE"] == "1"
    assert not {"PYTHONPATH", "SLURM_JOBID", "ACCELERATE_USE_DEEPSPEED"} & set(found)
    assert ("LD_PRELOAD" in found) == preload
    assert found["OMP_NUM_THREADS"] == "3"


def test_a_python_that_drops_docstrings_and_logs_that_no_library_has(tmp_path):
    """transformers reads its docstrings while it is imported."""
    variables = {"PYTHONOPTIMIZE": "2", "TORCH_LOGS": "zzz", "TRANSFORMERS_VERBOSITY": "zzz", "USE_TORCH": "0"}
    path, found = run(tmp_path, True, variables)
    assert str(PYTHON) in path
    assert not {"PYTHONOPTIMIZE", "TORCH_LOGS", "USE_TORCH"} & set(found)
    assert found["TRANSFORMERS_VERBOSITY"] == "error"


def test_a_current_folder_that_was_removed_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"cd {gone} && rmdir {gone} && exec {sys.executable} {PYTHON}/textual_inversion.py --help"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the current folder has been removed; change to")


def test_a_shell_that_has_read_env_sh(tmp_path):
    """The variables are those of the run; the threads of a rank are not those of another program."""
    variables = {environment.CLEAN: "/runs/a", "LD_PRELOAD": "/lib/x86_64-linux-gnu/libm.so.6"}
    variables |= {"OMP_NUM_THREADS": "3", "KMP_AFFINITY": "granularity=fine", "I_MPI_ROOT": "/env"}
    _, found = run(tmp_path, False, variables)
    assert found["I_MPI_ROOT"] == "/env"
    assert not {"LD_PRELOAD", "OMP_NUM_THREADS", "KMP_AFFINITY"} & set(found)
