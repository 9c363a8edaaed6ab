"""The programs for a host's own Python: what they may use, and that they run by themselves."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sdtune.errors import BadInput
from sdtune.training.metrics import read_metrics
from standalone import run_state

FOLDER = Path(__file__).parents[1] / "standalone"
PROGRAMS = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")
# in today's standard library, but not in that of Python 3.9
NEWER = {"tomllib"}


def test_there_are_some():
    assert {"peer.py", "run_state.py"} <= {path.name for path in PROGRAMS}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_it_is_python_39_and_imports_the_standard_library_only(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0}
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
    assert {name.partition(".")[0] for name in imported} <= set(sys.stdlib_module_names) - NEWER


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_it_runs_from_standard_input_without_our_environment(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-", "--help"], input=path.read_text(), capture_output=True, text=True, check=True,
        cwd=tmp_path, env={},
    )  # fmt: skip
    assert f"usage: {path.name}" in done.stdout


def test_a_run_folder_that_is_empty(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", FOLDER / "run_state.py", "look", tmp_path], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert (seen["supervised"], seen["unsupervised"], seen["finished"], seen["lost"]) == (False, False, False, False)
    assert seen["progress"] == {"max_steps": None, "checkpoint": None}


STEP = {"kind": "step", "time": 5.0, "step": 7, "loss": 0.1, "step_s": 2.0, "images_per_s": 4.0}


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"step": 8},
        {"kind": "step", "time": 6.0, "step": 8},  # cut off, and mended by an editor
        {**STEP, "time": "now"},
        {**STEP, "step_s": None},
        {**STEP, "step": "8"},
        {**STEP, "images_per_s": float("inf")},
        {**STEP, "kind": ["step"]},
        {"kind": "validation", "time": 6.0, "step": 7, "loss": None},
        {"kind": "epoch", "epoch": 3},  # another program's
    ],
)
def test_a_line_of_metrics_that_no_run_wrote_is_passed_over(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (STEP, line)))
    progress = run_state.look(tmp_path)["progress"]
    assert (progress["step"], progress["loss"], progress["step_s"], "validation" in progress) == (7, 0.1, 2.0, False)
    with pytest.raises(BadInput, match=r"line 2 of .* is damaged; remove this line"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_processes_of_a_run_are_found_by_their_environment(tmp_path):
    run = tmp_path / "runs" / "night"
    run.mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "60"], env={"SDTUNE_RUN": str(run)})
    try:
        done = subprocess.run(
            [sys.executable, "-I", FOLDER / "run_state.py", "runs", run.parent],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == {"night": [sleeper.pid]}
    finally:
        sleeper.kill()
        sleeper.wait()
