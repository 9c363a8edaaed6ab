"""teardown.yml removes what provisioning made, and nothing else. Users and keys: molecule."""

import subprocess
import sys


def refused(done):
    """What teardown.yml says of what it did not do: nothing was touched."""
    assert done.returncode == 2, done.stdout
    assert done.played.hosts("changed") == {}
    return " ".join(" ".join(done.played.failures()).split())


def test_what_was_there_before_stays(playbook, pictures, model, tmp_path):
    """A folder that we were pointed at, a model that the user had put there, files beside ours; runs too.

    It has to be meant, and no job may be at work.
    """
    work = tmp_path / "work"
    foreign = [work / name for name in ("notes.txt", "models/mine/weights", "data/concept/0.jpg", "runs/demo/job.yaml")]
    for path in foreign[:3]:
        path.parent.mkdir(parents=True)
        path.write_text("foreign")
    settings = {"base_model_source": str(model), "training_data_source": str(pictures)}
    done = playbook("provision.yml", "--tags", "base_model,training_data", **settings)
    assert done.returncode == 0, done.stdout
    foreign[3].parent.mkdir(parents=True)
    foreign[3].write_text("a run")
    (work / "models/late").write_text("came later")

    said = refused(playbook("teardown.yml"))
    assert "the cluster key on all hosts; if that is what you want, add -e teardown_confirm=yes" in said
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=work / "data", stdin=subprocess.PIPE) as job:
        said = refused(playbook("teardown.yml", teardown_confirm=True))
        job.communicate(b"\n")
    assert f"process {job.pid} (" in said
    assert f"works in {tmp_path}/work; wait for the run" in said
    assert (work / "models/toyworld").exists()

    done = playbook("teardown.yml", teardown_confirm=True)
    assert done.returncode == 0, done.stdout
    assert all(path.exists() for path in foreign)
    assert (work / "models/late").exists()
    assert not (work / "models/toyworld").exists()
    assert not (work / "models/toyworld.sha256").exists()
    message = " ".join(done.stdout.split())
    assert "stays, with" in message
    assert "runs are kept unless teardown_runs=true" in message

    done = playbook("teardown.yml", teardown_confirm=True, teardown_runs=True)
    assert done.returncode == 0, done.stdout
    assert not (work / "runs").exists()
    assert all(path.exists() for path in foreign[:3])
