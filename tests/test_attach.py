"""train.yml typed again: it brings what a finished run lacks, once, and then refuses the run as finished."""

import json
from hashlib import sha256

import pytest
from conftest import own_network
from standalone import host_claims


@pytest.fixture
def run(provisioned):
    """A run that finished under its supervisor while nobody followed. The fake of python exports and reports."""
    run = provisioned / "runs/r"
    run.mkdir(parents=True)
    proof = {
        "run_name": "r",
        "steps": 1,
        "attempt": 1,
        "token_sha256": 16 * "0",
        "job_sha256": sha256(b"").hexdigest(),
        "world_size": 1,
        "ranks": [{"rank": 0, "host": "here", "pid": 7, "samples": 1}],
        "learned": {"learned_embeds.safetensors": sha256(b"").hexdigest()},
    }
    (run / "finished.json").write_text(json.dumps(proof))
    (run / "state.json").write_text('{"run_name": "r", "state": "finished", "reason": "", "failures": []}')
    for name in ("job.yaml", "learned_embeds.safetensors", "metrics.jsonl"):
        (run / name).touch()
    (provisioned / "env/native/bin/python").write_text(
        f'#!/bin/sh\ncase "$*" in\n'
        f"*export_openvino.py*) mkdir {run}/openvino ;;\n"
        f"*make_report.py*) touch {run}/report.html ;;\n"
        f"*) exit 1 ;;\nesac\n"
    )
    return run


def test_what_a_finished_run_lacks_is_brought_once(playbook, run, tmp_path):
    """Left out roles are not waited for; a later call that plays them finds their work missing."""
    training_only = ("train.yml", "--skip-tags", "openvino_export,run_report")

    def words(done):
        return " ".join(done.stdout.split())

    done = playbook(*training_only, run_name="r")
    assert done.returncode == 0, done.stdout
    assert "r has finished, and this call brings what is missing: results" in words(done)
    artifacts = {path.name for path in (tmp_path / "artifacts/r").iterdir()}
    assert artifacts == {"job.yaml", "learned_embeds.safetensors", "metrics.jsonl"}
    assert not (run / "openvino").exists()

    done = playbook(*training_only, run_name="r")
    assert done.returncode == 2, "it attached again"
    assert "holds a finished run" in words(done)

    done = playbook("train.yml", run_name="r")
    assert done.returncode == 0, done.stdout
    assert "this call brings what is missing: OpenVINO copy, report" in words(done)
    assert (run / "openvino").exists()
    assert (tmp_path / "artifacts/r/report.html").exists()

    # A report that was not made is made; the copy, which takes minutes on a large model, is not exported again.
    (run / "report.html").unlink()
    done = playbook("train.yml", run_name="r")
    assert done.returncode == 0, done.stdout
    assert "this call brings what is missing: report" in words(done)

    assert playbook("train.yml", run_name="r").returncode == 2


def test_results_are_brought_while_another_run_uses_the_host(playbook, run, tmp_path):
    """What is finished needs no cores; a run that would begin is refused."""
    with own_network():
        claims = host_claims.claim_cores("/runs/night", range(4))
        try:
            brought = playbook("train.yml", run_name="r")
            refused = playbook("train.yml", run_name="another")
        finally:
            for claim in claims:
                claim.close()
    assert brought.returncode == 0, brought.stdout
    assert (tmp_path / "artifacts/r/report.html").exists()
    assert refused.returncode == 2
    assert "localhost: it is used by run night of user root, on cores 0-3; wait" in " ".join(refused.stdout.split())
    assert not (run.parent / "another").exists()
