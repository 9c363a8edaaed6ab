"""What train.yml says of a run that stands still, or whose folder is gone."""

from plugins.action import follow

SEEN = {
    "exists": True, "supervised": True, "lost": False, "standstill": "", "state": {"run_name": "r"}, "progress": {},
}  # fmt: skip


def test_a_run_that_stands_still():
    assert follow.describe(SEEN) == "r: starting"
    told = follow.describe({**SEEN, "standstill": "its supervisor, process 7, is stopped"})
    assert told == "r stands still: its supervisor, process 7, is stopped"


def test_a_run_folder_that_was_deleted():
    action = follow.ActionModule.__new__(follow.ActionModule)
    told = action._failure_message("node1", "/w/runs/r", {**SEEN, "exists": False, "supervised": False})
    assert told == "node1: the run folder /w/runs/r was deleted while the run was going on, which ends the run"
