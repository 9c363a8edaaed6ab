"""train.yml with a folder of concepts: fakes of what deals the hosts out, of training and of the report."""

import json
import sys

import pytest
import yaml

# The fake of the environment's Python: one run finishes, the other fails, and reports are empty pages.
PYTHON = f"""#!{sys.executable}
import json, pathlib, shutil, sys, time
arguments = sys.argv[2:]
if "side-by-side" in arguments:
    runs, request = pathlib.Path(arguments[-1]), json.load(sys.stdin)
    (runs / ".side-by-side").mkdir(exist_ok=True)
    (runs / "request.json").write_text(json.dumps(request))
    for name in request["runs"]:
        shutil.copytree(runs / name / f".staged-{{request['call']}}", runs / name, dirs_exist_ok=True)
        (runs / name / "metrics.jsonl").touch()
    rows = [
        {{"run": "mug", "state": "finished", "hosts": ["localhost"], "step": 20, "began": 1.0, "ended": 61.0}},
        {{"run": "vase", "state": "failed", "hosts": ["localhost"], "reason": "the loss is nan"}},
    ]
    (runs / ".side-by-side/table.json").write_text(json.dumps({{"began": time.time() - 60, "rows": rows}}))
elif arguments[:1] and arguments[0].endswith("make_report.py"):
    pathlib.Path(arguments[1], "report.html").touch()
"""


@pytest.fixture
def products(tmp_path, pictures, provisioned):
    """A folder of two concepts, which the hosts have."""
    for name in ("mug", "vase"):
        (tmp_path / "products" / name).mkdir(parents=True)
        (tmp_path / "products" / name / "1.jpg").write_bytes((pictures / "0.jpg").read_bytes())
    (provisioned / "data/products").mkdir()
    (provisioned / "data/products.sha256").touch()
    (provisioned / "env/native/bin/python").write_text(PYTHON)
    return tmp_path / "products"


def test_a_folder_of_concepts(playbook, tmp_path, products, provisioned):
    """Each becomes a run with pictures and a token of its own; what finished is brought, what did not is named."""
    own = [{"run_name": "vase", "training_seed": 7}]
    done = playbook(
        *("train.yml", "--skip-tags", "openvino_export"),
        training_concepts_source=str(products), training_runs=own, training_runs_hosts_per_run=1,
        training_max_train_steps=20, training_prior_preservation=True, training_prior_class_prompt="a mug",
        training_method="pivotal",
    )  # fmt: skip
    runs = provisioned / "runs"
    assert done.returncode == 2, done.stdout
    assert "1 of 2 runs did not finish (vase failed: the loss is nan); the same command" in done.played.failures()[0]
    assert "mug: finished on localhost, step 20, 1:00" in done.stdout
    request = json.loads((runs / "request.json").read_text())
    assert (request["runs"], request["hosts_per_run"], list(request["hosts"])) == (["mug", "vase"], 1, ["localhost"])
    jobs = {name: yaml.safe_load((runs / name / "job.yaml").read_text()) for name in ("mug", "vase")}
    assert {name: job["data"]["path"] for name, job in jobs.items()} == {
        name: f"{provisioned}/data/products/{name}" for name in jobs
    }
    assert [job["data"]["placeholder_token"] for job in jobs.values()] == ["<mug>", "<vase>"]
    assert [job["seed"] for job in jobs.values()] == [1, 7]
    plan = json.loads((runs / "mug/supervisor.json").read_text())
    assert (plan["wait_for_hosts"], plan["class_pictures"]) == (True, True)
    assert sorted(path.name for path in (tmp_path / "artifacts").rglob("*")) == [
        "job.yaml", "metrics.jsonl", "mug", "report.html",
    ]  # fmt: skip
