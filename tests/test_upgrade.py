"""What a run uses is not replaced under it."""

import os
import subprocess

import pytest
from wheel_double import make_wheel


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


def test_an_upgrade_that_does_not_work_changes_nothing(playbook, tmp_path):
    """It is built beside what is there, and looked at before any host is switched to it. The wheels are doubles."""
    wheels, lock, env = tmp_path / "wheels", tmp_path / "lock.txt", tmp_path / "work/env/native"
    make_wheel(wheels, "torch", "0.0.1", {"torch.py": "works = True\n"})
    make_wheel(wheels, "torch", "0.0.2", {"torch.py": "raise ImportError('no such instruction')\n"})
    make_wheel(wheels, "torch", "0.0.3", {"torch.py": "works = 'better'\n"})
    settings = {
        "_python_env_lock": str(lock), "python_env_torch_index": "default",
        "python_env_extra_pip_args": ["--find-links", str(wheels)],
    }  # fmt: skip

    def provision(version):
        lock.write_text(f"torch=={version}\npackaging==26.3\n")
        return playbook("provision.yml", "--tags", "python_env", **settings)

    def works():
        code = "import torch; print(torch.works)"
        return subprocess.run([env / "bin/python", "-c", code], capture_output=True, text=True, check=True).stdout

    assert provision("0.0.1").returncode == 0
    assert works() == "True\n"
    place = env.readlink()
    broken = provision("0.0.2")
    assert broken.returncode == 2
    assert "no such instruction" in broken.stdout
    assert (env.readlink(), works()) == (place, "True\n")
    assert provision("0.0.3").returncode == 0
    assert works() == "better\n"
    assert not (env.parent / place).exists(), "the old one is gone"
