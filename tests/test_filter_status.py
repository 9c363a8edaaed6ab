"""What status.yml and stop.yml say of a run and its hosts."""

import copy

import pytest

from plugins.filter import status

RUN = {
    "exists": True,
    "left": [],
    "standstill": "",
    "supervised": True,
    "unsupervised": False,
    "finished": False,
    "lost": False,
    "state": {"state": "running", "attempt": 2, "max_restarts": 3, "hosts": ["node1", "node2"], "ranks_per_node": 1},
    "progress": {
        "max_steps": 100, "checkpoint": 20, "step": 25, "loss": 0.12345, "step_s": 5.123, "images_per_s": 0.781,
        "eta_s": 3723.4, "validation": {"step": 25, "loss": 0.2},
    },
}  # fmt: skip
RANK = {"rank": 0, "pid": 7, "state": "R", "cpu": 99, "memory": 3 * 2**30, "sick": False, "log": "step 25"}
HOST = {
    "ranks": [RANK], "load": 1.25, "available": 2**30, "bytes_per_s": 1_500_000, "temperature": None, "throttled": 0,
    "logs": {"0": "step 25"}, "drawing": {"going": False, "state": {}, "log": []}, "run": RUN,
}  # fmt: skip


def changed(base, **more):
    """A deep copy of it with other values; a dictionary is merged into the one that is there."""
    new = copy.deepcopy(base)
    for key, value in more.items():
        new[key] = {**new[key], **value} if isinstance(value, dict) else value
    return new


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (None, "cannot be told, the primary does not answer"),
        (RUN, "is going on"),
        (changed(RUN, state={"stopping": True}), "is stopping"),
        (changed(RUN, state={"state": "waiting", "waiting_for": ["node2", "node3"]}), "waits for node2, node3"),
        (changed(RUN, supervised=False, unsupervised=True), "is going on, unsupervised"),
        (changed(RUN, supervised=False, lost=True), "died with its supervisor"),
        (changed(RUN, supervised=False, lost=True, rebooted=True), "ended when its host was rebooted"),
        (changed(RUN, supervised=False, finished=True), "is finished"),
        (changed(RUN, supervised=False, state={"state": "failed", "reason": "rank 1 died"}), "failed: rank 1 died"),
        ({**RUN, "supervised": False, "state": {}}, "is not going on"),
        ({**RUN, "standstill": "its supervisor is stopped"}, "stands still: its supervisor is stopped"),
        ({**RUN, "supervised": False, "exists": False}, "has no folder"),
        (
            {**RUN, "supervised": False, "exists": False, "left": [7, 8]},
            "has lost its folder, while processes work for it: 7, 8",
        ),
    ],
)
def test_what_a_run_does(run, words):
    assert status.run_state_words(run) == words


def test_the_last_line_of_a_host_counts():
    assert status.status_answer(["Welcome!", '{"ranks": []}']) == {"ranks": []}
    assert status.status_answer(["sudo: a password is required"]) is None
    assert status.status_answer([]) is None


def test_the_table_of_a_run():
    lines = status.status_table({"node1": HOST, "node2": None}, "node1", "demo")
    assert lines == [
        "run demo is going on",
        "step 25 of 100, loss 0.1235, validation 0.2000, 5.12 s/step, 0.781 images/s, ETA 1:02:03",
        "attempt 2 of 4, newest checkpoint: step 20",
        "host              ranks  CPU %  ranks MB   free MB   load  net MB/s  deg C throttled",
        "node1                 1     99      3072      1024    1.2      1.50      -         0",
        "node2            does not answer",
    ]


def test_a_run_that_ended_has_no_remaining_time():
    host = changed(HOST, run=changed(RUN, supervised=False, finished=True))
    assert "ETA" not in "".join(status.status_table({"node1": host}, "node1", "demo"))


def test_a_run_before_its_first_step():
    host = changed(HOST, run={**RUN, "progress": {"max_steps": 100, "checkpoint": None}})
    lines = status.status_table({"node1": host}, "node1", "demo")
    assert lines[:2] == ["run demo is going on", "attempt 2 of 4, newest checkpoint: none"]


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"pictures": 12, "of": 96, "eta_s": 61}, "pictures are being drawn: 12 of 96, ETA 0:01:01"),
        ({"pictures": 0, "of": 96, "eta_s": None}, "pictures are being drawn: 0 of 96"),
        ({}, "pictures are being drawn"),
    ],
)
def test_a_drawing(state, line):
    host = changed(HOST, drawing={"going": True, "state": state, "log": []})
    assert line in status.status_table({"node1": host}, "node1", "demo")


def test_ranks_that_need_attention():
    stopped = {**RANK, "rank": 1, "state": "T", "sick": True, "log": ""}
    failed = {**RANK, "rank": 2, "sick": True, "log": "error: no memory"}
    other = changed(HOST, logs={"1": "", "2": "loading"})
    other["ranks"] = []
    lines = status.status_table({"node1": {**HOST, "ranks": [RANK, stopped, failed]}, "node2": other}, "node1", "demo")
    assert lines[-3:] == [
        "rank 1 on node1 (state T): its log is empty",
        "rank 2 on node1: error: no memory",
        "node2: 0 of 1 ranks are there; the logs end with step 25 | loading",
    ]


def test_the_run_of_a_primary_that_does_not_answer():
    lines = status.status_table({"node1": None, "node2": {**HOST, "ranks": []}}, "node1", "demo")
    assert lines[0] == "run demo cannot be told, the primary does not answer"
    assert lines[2] == "node1            does not answer"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            RUN, changed(RUN, state={"state": "stopped", "reason": "on request"}),
            "demo has stopped on request; go on from step 20 with train.yml -e training_resume_from_checkpoint=auto",
        ),
        (RUN, changed(RUN, state={"state": "finished"}, finished=True), "demo has finished; it is complete"),
        (
            changed(RUN, supervised=False), changed(RUN, supervised=False, progress={"checkpoint": None}),
            "demo is not going on; it has no checkpoint",
        ),
    ],
)  # fmt: skip
def test_how_a_run_ended(before, after, words):
    assert status.stop_summary("demo", before, after) == words


def test_what_keeps_a_run_from_stopping():
    frozen = {**RUN, "standstill": "its supervisor is stopped"}
    assert status.stop_obstacle(frozen) == "its supervisor is stopped; then type the same again"
    assert status.stop_obstacle(RUN) == ""
    assert status.stop_obstacle({**RUN, "supervised": False}, 90) == ""
    assert "has not ended it within 90 s" in status.stop_obstacle(RUN, 90)
    assert "no supervisor" in status.stop_obstacle({**RUN, "supervised": False, "unsupervised": True}, 90)
