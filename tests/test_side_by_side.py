"""train.yml with a folder of concepts: fakes of what checks, deals the hosts out, trains and reports."""

import json
import sys

import pytest
import yaml

# The fake of the environment's Python. A job of seven steps is refused. Side by side one run finishes and the other
# fails, one after the other both finish. Reports are empty pages.
PYTHON = f"""#!{sys.executable}
import hashlib, json, pathlib, shutil, sys, time
arguments, prefix = sys.argv[2:], pathlib.Path(__file__).parents[1]
if arguments[:1] == ["-m"] and arguments[1].startswith("sdtune."):
    with open(prefix / "calls", "a") as calls:
        print(*arguments[1:3], file=calls)
if "sdtune.training.check_jobs" in arguments:
    request = json.load(sys.stdin)
    (prefix / "checked.json").write_text(json.dumps(request))
    assert all(pathlib.Path(asked["job"]).exists() for asked in request)
    if refused := [asked["about"] for asked in request if "max_train_steps: 7\\n" in open(asked["job"]).read()]:
        sys.exit("error: " + "\\n".join(f"{{about}}: seven steps" for about in refused))
    print(json.dumps([asked["about"] + ": squeezed" for asked in request]))
elif "side-by-side" in arguments:
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
elif arguments[:3] == ["-m", "sdtune.launch", "start"]:
    call, run = arguments[4], pathlib.Path(arguments[5])
    shutil.copytree(run / f".staged-{{call}}", run, dirs_exist_ok=True)
    (run / "metrics.jsonl").touch()
    (run / "learned_embeds.safetensors").write_bytes(b"learned")
    proof = {{"run_name": run.name, "steps": 20, "attempt": 1, "token_sha256": 16 * "0", "world_size": 2}}
    proof["ranks"] = [{{"rank": rank, "host": "here", "pid": 7, "samples": 1}} for rank in (0, 1)]
    proof["job_sha256"] = hashlib.sha256((run / "job.yaml").read_bytes()).hexdigest()
    proof["learned"] = {{"learned_embeds.safetensors": hashlib.sha256(b"learned").hexdigest()}}
    (run / "finished.json").write_text(json.dumps(proof))
    facts = {{"run_name": run.name, "state": "finished", "reason": "", "failures": []}}
    (run / "state.json").write_text(json.dumps(facts))
    print(json.dumps({{"did": "started"}}))
elif arguments[:1] and arguments[0].endswith("make_report.py"):
    page = pathlib.Path(arguments[2]) if "--compare" in arguments else pathlib.Path(arguments[1], "report.html")
    page.touch()
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


def calls(provisioned):
    """The programs of the package that were called, in order."""
    return (provisioned / "env/native/calls").read_text().splitlines()


def checks(provisioned):
    """What the only check was asked about."""
    assert len([call for call in calls(provisioned) if "check_jobs" in call]) == 1
    return [asked["about"] for asked in json.loads((provisioned / "env/native/checked.json").read_text())]


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
    assert checks(provisioned) == ["run mug", "run vase"]
    assert "localhost: warning: run vase: squeezed" in done.stdout
    assert sorted(path.name for path in (tmp_path / "artifacts").rglob("*")) == [
        "job.yaml", "metrics.jsonl", "mug", "report.html",
    ]  # fmt: skip


def test_one_check_before_the_first_of_several_runs_trains(playbook, products, provisioned):
    """Each has the variables of its own, though all were described before."""
    own = [{"run_name": "vase", "launch_config_ranks_per_node": 1, "training_overwrite": True}]
    done = playbook(
        *("train.yml", "--skip-tags", "openvino_export,run_report"),
        training_concepts_source=str(products), training_runs=own, training_max_train_steps=20,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert checks(provisioned) == ["run mug", "run vase"]
    assert calls(provisioned) == ["sdtune.training.check_jobs", *["sdtune.launch start"] * 2]
    asked = json.loads((provisioned / "env/native/checked.json").read_text())
    assert [(one["ranks"], one["overwrite"]) for one in asked] == [(2, False), (1, True)]
    jobs = [yaml.safe_load((provisioned / f"runs/{name}/job.yaml").read_text()) for name in ("mug", "vase")]
    assert [(job["run_name"], job["training"]["world_size"]) for job in jobs] == [("mug", 2), ("vase", 1)]


@pytest.mark.parametrize("hosts_per_run", [0, 1])
def test_a_job_that_is_refused_keeps_all_runs_from_starting(playbook, products, provisioned, hosts_per_run):
    own = [{"run_name": "vase", "training_max_train_steps": 7}]
    done = playbook(
        "train.yml", training_concepts_source=str(products), training_runs=own,
        training_runs_hosts_per_run=hosts_per_run,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert done.played.failures() == ["run vase: seven steps"]
    assert calls(provisioned) == ["sdtune.training.check_jobs"]
    assert [path for path in (provisioned / "runs").rglob("*") if path.is_file()] == []


def test_nothing_is_written_where_one_run_cannot_be_described(playbook, products, provisioned):
    """The last one has finished without a proof of that."""
    (provisioned / "runs/vase").mkdir(parents=True)
    (provisioned / "runs/vase/finished.json").touch()
    done = playbook("train.yml", training_concepts_source=str(products), training_max_train_steps=20)
    assert done.returncode == 2, done.stdout
    assert [path.name for path in (provisioned / "runs").rglob("*")] == ["vase", "finished.json"]
