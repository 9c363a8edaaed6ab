"""teardown.yml removes what provisioning made, and nothing else. Users and keys: molecule."""

import subprocess
import sys

import pytest


@pytest.fixture
def provision(playbook, pictures, model):
    """Bring model and pictures: two of the folders that provisioning makes."""
    settings = {"base_model_source": str(model), "training_data_source": str(pictures)}

    def run(**more: object):
        done = playbook("provision.yml", "--tags", "base_model,training_data", **(settings | more))
        assert done.returncode == 0, done.stdout
        return done

    return run


def test_nothing_is_left_and_it_can_be_provisioned_again(playbook, provision, tmp_path):
    """Parents that were missing are ours too; a second provisioning notes nothing anew."""
    work = tmp_path / "deep/down/work"
    for _ in range(2):
        provision(work_dir=str(work))
        assert (work / "models/toyworld/unet/config.json").exists()
        assert provision(work_dir=str(work)).played.hosts("changed") == {}
        done = playbook("teardown.yml", work_dir=str(work), teardown_confirm=True)
        assert done.returncode == 0, done.stdout
        assert "nothing of it is left" in done.stdout
        assert not work.exists()
    assert not (tmp_path / "deep").exists()
    assert playbook("teardown.yml", work_dir=str(work), teardown_confirm=True).played.hosts("changed") == {}


def test_what_was_there_before_stays(playbook, provision, tmp_path):
    """A folder that we were pointed at, a model that the user had put there, files beside ours; runs too."""
    work = tmp_path / "work"
    foreign = [work / name for name in ("notes.txt", "models/mine/weights", "data/concept/0.jpg", "runs/demo/job.yaml")]
    for path in foreign[:3]:
        path.parent.mkdir(parents=True)
        path.write_text("foreign")
    provision()
    foreign[3].parent.mkdir(parents=True)
    foreign[3].write_text("a run")
    (work / "models/late").write_text("came later")
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


def test_it_has_to_be_meant(playbook, provision, tmp_path):
    """Asked for, with what would go."""
    provision()
    done = playbook("teardown.yml")
    assert done.returncode == 2
    assert "the cluster key on all hosts; if that is what you want, add -e teardown_confirm=yes" in " ".join(
        " ".join(done.played.failures()).split()
    )
    assert done.played.hosts("changed") == {}
    assert (tmp_path / "work/models/toyworld").exists()


def test_a_job_at_work(playbook, provision, tmp_path):
    """Refused, and named; nothing was touched."""
    provision()
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path / "work/data", stdin=subprocess.PIPE) as job:
        done = playbook("teardown.yml", teardown_confirm=True)
        job.communicate(b"\n")
    assert done.returncode == 2
    message = " ".join(" ".join(done.played.failures()).split())
    assert f"process {job.pid} (" in message
    assert f"works in {tmp_path}/work; wait for the run" in message
    assert done.played.hosts("changed") == {}
