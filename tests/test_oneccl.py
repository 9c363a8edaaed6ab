"""oneccl, on this machine. Fakes: torch, Intel MPI, and the wheels of oneCCL and its bindings. No index is reached."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from wheel_fake import make_index, make_wheel

LOADS = "import torch\n__version__ = '2.8.0+cpu'\n"
BROKEN = "raise ImportError('libccl.so.1: cannot open shared object file')\n"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment that has a torch 2.8.0 of one line, and Intel MPI by name."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    torch = make_wheel(folder, "torch", "2.8.0", {"torch/__init__.py": "__version__ = '2.8.0'\n"})
    mpi = make_wheel(folder, "impi_rt", "2021.18.1")
    subprocess.run([folder / "env/bin/pip", "install", "--quiet", "--no-index", torch, mpi], check=True)
    return folder / "env"


@pytest.fixture
def settings(tmp_path, environment):
    """Variables for that environment, without bindings; oneCCL itself is an empty wheel."""
    python = environment / "bin/python"
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "oneccl_bind_pt", "oneccl_cpu"], check=True)
    wheels = tmp_path / "oneccl"
    # the demands of the real wheels, which have to agree with the version of Intel MPI
    for version, demand in (("2021.16.2", ">=2021.16"), ("2021.15.2", "==2021.15.*")):
        make_wheel(wheels, "oneccl_cpu", version, {"libccl.so.1": "library"}, requires=[f"impi-rt ({demand})"])
    return {
        "software_stack": "ipex",
        "training_backend": "ccl",
        "cluster_env_prefix": str(environment),
        "oneccl_source_pip_args": ["--no-index", "--find-links", str(tmp_path / "oneccl")],
    }


def bindings(folder: Path, version: str = "2.8.0+cpu", code: str = LOADS, requires: Sequence[str] = ()) -> Path:
    """A folder that has a fake of the bindings' wheel."""
    make_wheel(folder, "oneccl_bind_pt", version, {"oneccl_bindings_for_pytorch/__init__.py": code}, requires)
    return folder


def provision(playbook, settings, **more):
    """The role alone."""
    done = playbook("provision.yml", "--tags", "oneccl", **settings, **more)
    return done, " ".join((done.stdout + done.stderr).split())


def test_from_a_folder_of_wheels_and_from_an_index(playbook, tmp_path, settings, environment):
    """Installed once; a second time, whatever the source, changes nothing."""
    wheels = bindings(tmp_path / "wheels")
    done, said = provision(playbook, settings, oneccl_wheels=str(wheels))
    assert done.returncode == 0, said
    assert next(environment.glob("lib/python3*/site-packages/oneccl_bind_pt-2.8.0+cpu.dist-info")).is_dir()
    index = make_index(tmp_path / "index", wheels)
    done, said = provision(playbook, settings, oneccl_index_url=index)
    assert "changed=0" in done.stdout, said
    subprocess.run([environment / "bin/pip", "uninstall", "--quiet", "--yes", "oneccl_bind_pt"], check=True)
    page = next((tmp_path / "index").glob("*/index.html")).as_uri()
    done, said = provision(playbook, settings, oneccl_wheels=page, oneccl_index_url="https://unused.example/")
    assert done.returncode == 0, said
    assert next(environment.glob("lib/python3*/site-packages/oneccl_bind_pt-2.8.0+cpu.dist-info")).is_dir()
    assert not (tmp_path / "work/wheelhouse-oneccl").exists() or list((tmp_path / "work/wheelhouse-oneccl").iterdir())


@pytest.mark.parametrize("which", ["oneccl_packages", "oneccl_bindings"])
def test_packages_that_do_not_agree_with_the_environment(playbook, tmp_path, settings, environment, which):
    """Refused by name, and removed: the environment stays as it was, so no later call builds it again."""
    demand = ["impi-rt==2021.15.*"] if which == "oneccl_bindings" else []
    wheels = bindings(tmp_path / "wheels", requires=demand)
    more = {"oneccl_packages": ["oneccl-cpu==2021.15.2"]} if which == "oneccl_packages" else {}
    done, said = provision(playbook, settings, oneccl_wheels=str(wheels), **more)
    assert done.returncode == 2, said
    assert (
        "localhost: the packages of oneccl_packages and oneccl_bindings do not agree with the environment (oneccl"
        in said
    )
    assert "has requirement impi-rt==2021.15.*, but you have impi-rt 2021.18.1." in said
    subprocess.run([environment / "bin/python", "-m", "pip", "check"], check=True)


def test_damaged_packages_are_installed_again(playbook, tmp_path, settings, environment):
    """oneCCL's library and a file of the bindings, one of them with its size unchanged."""
    wheels = bindings(tmp_path / "wheels")
    assert provision(playbook, settings, oneccl_wheels=str(wheels))[0].returncode == 0
    packages = next(environment.glob("lib/python3*/site-packages"))
    module = packages / "oneccl_bindings_for_pytorch/__init__.py"
    (packages / "libccl.so.1").unlink()
    module.write_text(LOADS.replace("2.8.0", "2.8.1"))
    done, said = provision(playbook, settings, oneccl_wheels=str(wheels))
    assert done.returncode == 0, said
    assert (packages / "libccl.so.1").read_text() == "library"
    assert module.read_text() == LOADS


def test_bindings_that_cannot_be_had(playbook, tmp_path, settings):
    """Host, wheel and index are named; nothing else is taken."""
    (tmp_path / "index").mkdir()
    url = (tmp_path / "index").as_uri() + "/"
    done, said = provision(playbook, settings, oneccl_index_url=url)
    assert done.returncode == 2
    assert f"localhost: oneccl_bind_pt==2.8.0 cannot be had from {url} (" in said
    assert "No matching distribution" in said or "Could not find a version" in said
    assert "or set training_backend to gloo" in said


def test_bindings_that_do_not_load(playbook, tmp_path, settings):
    """The loader's own words are shown."""
    wheels = bindings(tmp_path / "wheels", code=BROKEN)
    done, said = provision(playbook, settings, oneccl_wheels=str(wheels))
    assert done.returncode == 2
    assert f"localhost: oneccl_bind_pt==2.8.0 from {wheels} does not load (ImportError: libccl.so.1" in said


def test_a_wheelhouse_does_not_have_the_bindings(playbook, settings):
    """Refused by the inventory alone."""
    done, said = provision(playbook, settings, python_env_source="wheelhouse")
    assert done.returncode == 2
    assert "training_backend is ccl, and oneccl_wheels is empty" in said
    assert "Gather facts" not in said


@pytest.mark.parametrize("where", ["folder", "index"])
def test_bindings_for_another_torch(playbook, tmp_path, settings, where):
    """Refused by the inventory alone."""
    wheels = bindings(tmp_path / "wheels", "2.7.0+cpu")
    more = {"oneccl_wheels": str(wheels)} if where == "folder" else {"oneccl_bindings": "oneccl_bind_pt==2.7.0"}
    done, said = provision(playbook, settings, **more)
    assert done.returncode == 2
    assert {
        "folder": f"{wheels} on this machine holds no wheel of oneccl_bind_pt==2.8.0 for CPUs (oneccl_bind_pt-2.7.0+",
        "index": "oneccl_bindings oneccl_bind_pt==2.7.0 is for another torch than the 2.8.0 of the stack ipex",
    }[where] in said
    assert "Gather facts" not in said
