"""The table of runs that go on side by side, as train.yml prints it."""

import pytest

from plugins.action.follow_runs import ended_line, table_lines
from plugins.filter.runs import unfinished_runs
from plugins.filter.status import stopped_table

ROWS = [
    {
        "run": "mug",
        "state": "running",
        "hosts": ["n2"],
        "words": "",
        "step": 12,
        "max_steps": 20,
        "loss": 0.05,
        "eta_s": 61,
    },
    {"run": "vase", "state": "running", "hosts": ["n1"], "words": "draws the class pictures, 3 of 9"},
    {"run": "cup", "state": "waiting", "hosts": [], "words": "is job 7, pending (Resources)"},
    {"run": "jug", "state": "waiting", "hosts": []},
    {"run": "pot", "state": "finished", "hosts": ["n2"], "step": 20, "began": 100.0, "ended": 225.0, "reason": ""},
    {"run": "pan", "state": "failed", "hosts": ["n1"], "ended": 200.0, "reason": "its host was lost"},
]


def test_the_table():
    lines = table_lines({"rows": ROWS, "began": 100.0, "now": 1900.0, "silent": ["n3"]})
    assert [line.split() for line in lines[:2]] == [
        ["run", "step", "loss", "ETA", "hosts"],
        ["mug", "12/20", "0.0500", "1:01", "n2"],
    ]
    assert lines[2].split(maxsplit=1)[1] == "draws the class pictures, 3 of 9 on n1"
    assert lines[3].endswith("is job 7, pending (Resources)")
    assert lines[4] == "1 finished, 1 failed, 2 waiting; 2 concepts per hour; n3 do not answer"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (ROWS[4], "pot: finished on n2, step 20, 2:05"),
        (ROWS[5], "pan: failed on n1; its host was lost"),
    ],
)
def test_a_run_that_ended(row, line):
    assert ended_line(row) == line


def test_what_is_left():
    held = {"run": "cup", "state": "waiting", "never": "it is held", "hosts": []}
    said = unfinished_runs([ROWS[4], ROWS[5], held])
    assert said.startswith("2 of 3 runs did not finish (pan failed: its host was lost; cup waiting: it is held);")
    assert stopped_table({"rows": ROWS}, ["pan"]) == ["pan is failed its host was lost"]
