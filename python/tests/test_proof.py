"""A finished run proves that its ranks finished it, and what they learned."""

import json

import pytest

from sdtune.errors import BadInput
from sdtune.launch import processes
from sdtune.launch.run_folder import Run
from sdtune.training.trainer import train
from standalone import run_state


def test_a_finished_run_proves_itself_until_something_changes(job):
    train(job)
    run = Run(job.run_dir)
    assert run_state.why_unproven(run.folder) == ""
    facts = run.facts()
    (rank,) = facts["ranks"]
    assert (rank["rank"], rank["samples"], facts["attempt"]) == (0, 4, 1)
    run.finished.write_text(json.dumps({**facts, "world_size": 2}))
    assert run_state.why_unproven(run.folder) == "finished.json names 1 of 2 ranks"
    run.finished.write_text(json.dumps({key: value for key, value in facts.items() if key != "ranks"}))
    assert "an earlier version wrote it" in run_state.why_unproven(run.folder)
    wrong = {
        "token_sha256": "",
        "learned": {},
        "ranks": [{"rank": 0}],
        "world_size": 10**12,
        "attempt": True,
        "steps": 0,
    }
    for name, value in wrong.items():
        run.finished.write_text(json.dumps({**facts, name: value}))
        assert run_state.why_unproven(run.folder) == f"finished.json is damaged: {name}"
    run.finished.write_text(json.dumps({**facts, "run_name": "other"}))
    (run.folder / "job.yaml").write_text("run_name: mine\n")
    assert run_state.why_unproven(run.folder) == "finished.json is of run other, not of mine"
    with pytest.raises(BadInput, match=r"holds a run that is not known to have finished \(finished"):
        run.check_writable(overwrite=False, resume=False)
    with pytest.raises(BadInput, match=r"holds no finished run: finished\.json is of run other"):
        run.facts()
    (run.folder / "job.yaml").unlink()
    run.finish(facts, [run.learned])
    assert run_state.why_unproven(run.folder) == ""
    run.job.write_text(f"run_name: {job.run_name}\n")  # as an overwriting start that ends before its ranks begin
    assert run_state.why_unproven(run.folder) == "job.yaml is not the one that it was trained with"
    run.job.unlink()
    run.learned.write_bytes(run.learned.read_bytes() + b"\0")
    assert run_state.why_unproven(run.folder).startswith("learned_embeds.safetensors is not what its ranks learned")
    seen = run_state.look(run.folder)
    assert (seen["finished"], bool(seen["unproven"])) == (False, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ],
    ids=["v2", "v1"],
)
def test_kills_for_want_of_memory_are_counted(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert processes.killed_for_memory(tmp_path) == 2
    assert isinstance(processes.killed_for_memory(), int)
