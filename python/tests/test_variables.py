"""Numbers in environment variables are read in one place, which says what is wrong with them."""

import os
import re
import subprocess
import sys

import pytest

from sdtune.errors import BadInput
from sdtune.launch import meeting, variables
from sdtune.launch.meeting import Attempt
from sdtune.training.checks import launched_world_size
from tests.conftest import PYTHON

NAMES = [*variables.RANK, *variables.SIZE, *variables.LOCAL_RANK, *variables.LOCAL_SIZE]
OTHERS = ["MASTER_PORT", "OMP_NUM_THREADS", "CCL_WORKER_COUNT"]
WRONG = ["abc", "-2", "1.5", "1e3", "0x1", "٣", "1 2", "9" * 30, "\n7\n8"]
TWO = {"WORLD_SIZE": "2", "RANK": "0"}


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in (*NAMES, *OTHERS, meeting.PORTS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_what_is_no_number_is_one_line_that_names_it(monkeypatch, name):
    if name in OTHERS:
        for key, value in TWO.items():
            monkeypatch.setenv(key, value)
    for text in (*WRONG, *(["0"] if name in (*variables.SIZE, *variables.LOCAL_SIZE, "MASTER_PORT") else [])):
        monkeypatch.setenv(name, text)
        with pytest.raises(BadInput) as refused:
            variables.check_rank()
        said = str(refused.value)
        assert said.startswith(f"the environment variable {name} is {text!r}, not a whole number from ")
        assert said.endswith("; unset it, or start the run with launch.sh in its folder, which sets it")
        assert "\n" not in said
        with pytest.raises(BadInput, match=f"variable {name} is "):
            variables.number(name, 1)


@pytest.mark.parametrize("text", ["", " ", "-1", "1", " 1 ", "01"])
def test_what_accelerate_reads_is_read(monkeypatch, text):
    """An empty one is removed: to Accelerate it is an error."""
    for name in NAMES:
        monkeypatch.setenv(name, "0" if text.strip(" 0") == "1" and "RANK" in name and "RANKS" not in name else text)
    variables.check_rank()
    assert launched_world_size() == 1
    assert not [name for name in NAMES if os.environ.get(name, "x").strip() == ""]


@pytest.mark.parametrize(
    ("set_", "said"),
    [
        ({"RANK": "7", "WORLD_SIZE": "4"}, "WORLD_SIZE says that 4 ranks were started, but RANK is 7; unset"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "RANK": "2"}, "PMI_SIZE says that 2 ranks were started, but RANK is 2; un"),
        ({"WORLD_SIZE": "4"}, "4 ranks were started, but none of RANK, PMI_RANK, "),
        ({"MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "2"}, "MPI_LOCALNRANKS says that 2 ranks were started, but MPI_"),
        ({"RANK": "x", "PMI_SIZE": "y"}, "RANK is 'x', not .*; the environment variable PMI_SIZE is 'y', not "),
    ],
)
def test_contradictions(monkeypatch, set_, said):
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=said):
        variables.check_rank()


def test_what_no_library_reads_is_no_error(monkeypatch):
    """A list of threads is what OpenMP allows; with one rank there is no port."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    monkeypatch.setenv("MASTER_PORT", "x")
    monkeypatch.setenv("RANK", "3")
    variables.check_rank()


@pytest.mark.parametrize("text", ["abc", "1-", "1-2-3", "-", "1..3", "9-99999999999"])
def test_lists(monkeypatch, text):
    monkeypatch.setenv(meeting.PORTS, text)
    with pytest.raises(BadInput, match=f"variable SDTUNE_PORTS is '{text}', no list such as 0-3,8; unset it"):
        variables.numbers(meeting.PORTS)


def test_those_of_our_launch_files(monkeypatch):
    with pytest.raises(BadInput, match="variable SDTUNE_ATTEMPT is 'x', not a whole number from 1 to"):
        Attempt.of({meeting.ATTEMPT: "x"})
    for name in (meeting.TOKEN, meeting.ATTEMPT):
        monkeypatch.setenv(name, "1")
    with pytest.raises(BadInput, match=r"SDTUNE_PORTS is not set; start launch\.sh in the run folder"):
        meeting.start(["true"])


def test_no_other_module_reads_them():
    reads = re.compile(r"(int|parse_numbers)\(\s*(os\.)?environ")
    for path in (PYTHON / "sdtune").rglob("*.py"):
        if path.name in ("variables.py", "hydra.py"):  # the latter tells nobody, where there is none to tell
            continue
        assert not reads.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("value", ["abc", "1"])
def test_an_error_is_told_whatever_the_number_of_this_process_is(tmp_path, value):
    """Only where rank.sh has started several ranks of one host, one of them tells it."""
    command = [sys.executable, PYTHON / "textual_inversion.py", "--check", "--job", tmp_path / "none.yaml"]
    environment = {**os.environ, "MPI_LOCALRANKID": value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
