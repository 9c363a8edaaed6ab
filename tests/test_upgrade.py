"""What a run uses is not replaced under it."""

import os
import subprocess

import pytest


@pytest.fixture
def going_on(provisioned):
    """A process that works for the run `long`, as far as anybody can see (a double of a rank)."""
    process = subprocess.Popen(["sleep", "300"], env={**os.environ, "SDTUNE_RUN": str(provisioned / "runs/long")})
    yield
    process.kill()
    process.wait()


def test_an_environment_of_other_pins_is_not_replaced_under_a_run(playbook, provisioned, going_on):
    """The run is named, and what to do."""
    prefix = provisioned / "env/native"
    (prefix / ".files").touch()
    (prefix / ".complete").write_text("other pins\n")
    done = playbook("provision.yml", "--tags", "python_env")
    said = " ".join(done.stdout.split())
    assert done.returncode == 2, said
    assert "the environment is outdated and has to be built anew, but long is going on" in said
    assert "ansible-playbook stop.yml -e run_name=long first" in said
    assert (prefix / ".complete").read_text() == "other pins\n"
    assert done.played.hosts("changed") == {"localhost": 1}, "the note of what is provisioned, and nothing else"


def test_other_code_is_not_installed_under_a_run(playbook, provisioned, going_on):
    """Neither is the code that its ranks import from."""
    code = provisioned / "sdtune/python"
    (code / "old.py").touch()
    done = playbook("provision.yml", "--tags", "sdtune")
    said = " ".join(done.stdout.split())
    assert done.returncode == 2, said
    assert "the code has changed, but long is going on" in said
    assert [path.name for path in code.iterdir()] == ["old.py"]
