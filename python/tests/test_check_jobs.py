"""One check of the jobs of several runs: what it says of each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sdtune.errors import BadInput
from sdtune.training.check_jobs import check_jobs


@pytest.fixture
def asked(mapping, tmp_path):
    """A function that writes a job file; it returns what a request says of it."""

    def write(name, ranks=1, overwrite=False, about="run {}", **changes):
        job = {**mapping, "run_name": name, "run_dir": str(tmp_path / name)}
        for section, values in changes.items():
            job[section] = {**job[section], **values}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(job))
        return {"about": about.format(name), "job": str(path), "ranks": ranks, "overwrite": overwrite}

    return write


def test_every_job_that_cannot_run_is_named(asked, tmp_path):
    """Whether its file cannot be read or its inputs are wrong; those between are checked too."""
    unread = asked("c")
    Path(unread["job"]).write_text("run_name: [")
    with pytest.raises(BadInput) as refused:
        check_jobs([asked("a"), asked("b", data={"path": str(tmp_path / "none")}), unread])
    lines = str(refused.value).split("\n")
    assert sorted(line.split(": ")[0] for line in lines) == ["run b", "run c"]
    assert any(line.startswith("run b: data.path: ") for line in lines)


def test_warnings_name_their_run(asked):
    low = {"learning_rate": 1e-9}
    [of_b, of_c] = check_jobs([asked("a"), asked("b", training=low), asked("c", training=low, about="")])
    assert of_b == f"run b: {of_c}"
    assert of_c.startswith("training.learning_rate: 1e-09 moves")


def test_each_job_has_the_ranks_of_its_own(asked, monkeypatch):
    """Whatever the variables of this process say."""
    monkeypatch.setenv("MPI_LOCALNRANKS", "7")
    monkeypatch.setattr("sdtune.training.memory.available_bytes", lambda: 4_000_000_000)  # a fake
    with pytest.raises(
        BadInput, match=r"^run b: training.train_batch_size: .* on 20 rank\(s\) need at least"
    ) as refused:
        check_jobs([asked("a", ranks=1), asked("b", ranks=20), asked("c", ranks=2)])
    assert "\n" not in str(refused.value)


def test_a_finished_run_is_refused_unless_it_may_be_overwritten(asked, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "finished.json").touch()
    with pytest.raises(BadInput, match=r"^run a: [^\n]*$"):
        check_jobs([asked("a"), asked("b", overwrite=True)])


def test_the_program_prints_warnings_or_fails(asked, tmp_path):
    def called(*request):
        command = [sys.executable, "-m", "sdtune.training.check_jobs"]
        return subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)

    done = called(asked("a", training={"learning_rate": 1e-9}), asked("b"))
    assert done.returncode == 0, done.stderr
    [warning] = json.loads(done.stdout.splitlines()[-1])
    assert warning.startswith("run a: training.learning_rate")
    done = called(asked("a", data={"path": str(tmp_path / "none")}), asked("b"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: run a: data.path: ")
