"""What a run uses is not replaced under it."""

import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from wheel_fake import make_wheel

TEST_PACKAGES = next(REPOSITORY.glob(".cache/test/env/native/lib/python3*/site-packages"), None)


@pytest.fixture
def going_on(provisioned):
    """A process that works for the run `long`, as far as anybody can see (a fake of a rank)."""
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
    assert re.search(r"the code has changed \([^)]*\bold\.py\b[^)]*\), but long is going on", said)
    assert [path.name for path in code.iterdir()] == ["old.py"]


def test_an_upgrade_that_does_not_work_changes_nothing(playbook, tmp_path):
    """It is built beside what is there, and looked at before any host is switched to it. The wheels are fakes."""
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


@pytest.fixture
def version_0_1_0(tmp_path):
    """A host that 0.1.0 provisioned: its one package is installed editable. Other packages are those of the tests."""
    environment, code = tmp_path / "work/env/native", tmp_path / "work/sdtune/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = next(environment.glob("lib/python3*/site-packages"))
    (site / "others.pth").write_text(f"{TEST_PACKAGES}\n")
    (code / "sdtune").mkdir(parents=True)
    (code / "sdtune/__init__.py").write_text('__version__ = "0.1.0"\n')
    (code / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools>=77']\nbuild-backend = 'setuptools.build_meta'\n"
        "[project]\nname = 'sdtune'\nversion = '0.1.0'\n[tool.setuptools]\npackages = ['sdtune']\n"
    )
    pip = [environment / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--editable", code], check=True)
    return environment


@pytest.mark.skipif(TEST_PACKAGES is None, reason="make pytest provisions them")
def test_a_host_of_an_earlier_version(playbook, version_0_1_0):
    """Packages that it did not have import, its metadata is that of the new code, and a second time changes nothing."""
    python = version_0_1_0 / "bin/python"
    asked = "import sdtune, standalone.run_state; from importlib.metadata import version; print(version('sdtune'))"
    assert subprocess.run([python, "-P", "-c", asked], capture_output=True, check=False, cwd="/").returncode == 1
    provision = ("provision.yml", "--tags", "sdtune")
    done = playbook(*provision)
    assert done.returncode == 0, done.stdout
    found = subprocess.run([python, "-P", "-c", asked], capture_output=True, text=True, check=True, cwd="/").stdout
    assert found != "0.1.0\n"
    assert len(list(version_0_1_0.glob("lib/python3*/site-packages/sdtune-*.dist-info"))) == 1
    assert "changed=0" in playbook(*provision).stdout
