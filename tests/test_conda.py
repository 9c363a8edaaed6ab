"""python_env with conda, on this machine: channel, client and installer are the fakes of conda_fake.py."""

import hashlib
import os
import pwd
import subprocess

import conda_fake
import pytest
from wheel_fake import make_wheel

LOCK = "torch==1.0\npackaging==26.3\n"


@pytest.fixture(scope="session")
def channel(tmp_path_factory):
    """The fake of conda-forge."""
    return conda_fake.make_channel(tmp_path_factory.mktemp("channel"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of the test's own: conda's named environments lie there."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def settings(tmp_path, home, channel):
    """Variables for a conda environment with two small wheels; torch is a fake."""
    (tmp_path / "lock.txt").write_text(LOCK)
    make_wheel(tmp_path / "wheels", "torch", "1.0", {"torch.py": ""})
    installer = conda_fake.make_installer(tmp_path / "miniforge.sh")
    return {
        "python_env_manager": "conda",
        "python_env_conda_channels": [channel.as_uri()],
        "python_env_conda_packages": conda_fake.packages(channel),
        "python_env_conda_installer": str(installer),
        "python_env_conda_installer_sha256": hashlib.sha256(installer.read_bytes()).hexdigest(),
        "python_env_torch_index": "default",
        "python_env_extra_pip_args": ["--find-links", str(tmp_path / "wheels")],
        "_python_env_lock": str(tmp_path / "lock.txt"),
    }


def provision(playbook, settings, *args, **more):
    """The two roles that make the environment and find the library."""
    return playbook("provision.yml", "--tags", "python_env,gperftools", *args, **settings, **more)


def text(done):
    """What was said, without line breaks."""
    return " ".join((done.stdout + done.stderr).split())


def tree(folder):
    """Every file of a folder and when it was changed."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_an_environment_from_nothing_twice_and_anew(playbook, tmp_path, home, settings):
    """Miniforge, the environment and its allocator; a second time changes nothing, another gperftools a lot."""
    work, mine = tmp_path / "work", home / ".conda/envs/mine"
    mine.mkdir(parents=True)
    (mine / "precious").write_text("as it was")
    done = provision(playbook, settings)
    assert done.returncode == 0, text(done)
    env = work / "env/native"
    assert {path.name for path in (env / "conda-meta").glob("*.json")} >= {"gperftools-2.17.2-0.json"}
    assert {path.name for path in env.glob("lib/python3*/site-packages/*.dist-info")} >= {"torch-1.0.dist-info"}
    assert (home / ".conda/envs/diffuser").resolve() == env.resolve()
    assert (work / "lib/native/libtcmalloc.so").resolve() == (env / "lib/libtcmalloc.so.4").resolve()
    assert not list(work.glob("miniforge-*")), "the installer was left"

    done = provision(playbook, settings)
    assert "changed=0" in done.stdout, text(done)

    settings["python_env_conda_packages"][-1] = "gperftools=2.18.1"
    done = provision(playbook, settings)
    assert "the environment is outdated and is built from" in text(done)
    assert {path.name for path in env.glob("conda-meta/gperftools-*")} == {"gperftools-2.18.1-0.json"}
    assert [path.name for path in (work / "env").glob("native.*") if path.is_dir()] == [env.readlink().name]
    assert (mine / "precious").read_text() == "as it was"

    done = provision(playbook, {**settings, "python_env_manager": "venv"}, python_env_python=str(env / "bin/python3"))
    assert done.returncode == 0, text(done)
    assert not (env / "conda-meta").exists(), "packages of conda in an environment of venv"
    assert "/env/" not in str((work / "lib/native/libtcmalloc.so").resolve())


def test_a_conda_that_is_there_already_is_used_as_it_is(playbook, tmp_path, settings):
    """Nothing is installed into it, also where it belongs to another user."""
    theirs = tmp_path / "theirs"
    subprocess.run(["bash", tmp_path / "miniforge.sh", "-b", "-p", theirs], check=True)
    (theirs / "envs/other").mkdir()
    for path in (theirs, *theirs.rglob("*")):
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
    before = tree(theirs)
    settings["python_env_conda_installer"] = ""
    done = provision(playbook, settings, python_env_conda_prefix=str(theirs))
    assert done.returncode == 0, text(done)
    assert (tmp_path / "work/env/native/lib/libtcmalloc.so").exists()
    assert tree(theirs) == before
    assert not (tmp_path / "work/conda").exists()


def refused(done, tmp_path, *texts):
    """The playbook failed, said these texts, and installed no environment."""
    assert done.returncode == 2, text(done)
    for expected in texts:
        assert expected in text(done)
    assert not (tmp_path / "work/env").exists()


def test_a_file_that_is_not_the_installer(playbook, tmp_path, settings):
    """Its checksum is compared before anything happens, here and where a host downloads it."""
    wrong = settings["python_env_conda_installer_sha256"] = "0" * 64
    done = provision(playbook, settings)
    digest = hashlib.sha256((tmp_path / "miniforge.sh").read_bytes()).hexdigest()
    refused(
        done, tmp_path, f"miniforge.sh has the SHA-256 {digest}, not {wrong}; fetch it again, or correct python_env_"
    )
    assert not (tmp_path / "work").exists()
    url = (tmp_path / "miniforge.sh").as_uri()
    done = provision(playbook, {**settings, "python_env_conda_installer": ""}, python_env_conda_installer_url=url)
    assert done.returncode == 2
    assert f"localhost: the installer of conda, {url}, cannot be used (" in text(done)
    assert "checksum" in text(done)
    assert not (tmp_path / "work/conda").exists()


def test_bad_input(playbook, tmp_path, home, settings):
    """Each in one line, before anything is installed, and all in one report."""
    (tmp_path / "work/conda").mkdir(parents=True)
    os.chown(tmp_path / "work/conda", pwd.getpwnam("nobody").pw_uid, -1)
    (home / ".conda/envs/diffuser").mkdir(parents=True)
    refused(
        provision(playbook, settings), tmp_path,
        f"python_env_conda_prefix {tmp_path / 'work/conda'} belongs to nobody, and root is to install there; remove it",
        "root has an environment diffuser that is not ours", "choose another name with python_env_conda_environment",
    )  # fmt: skip
    refused(
        provision(playbook, settings, python_env_conda_prefix="/no/conda"), tmp_path,
        "there is no conda in python_env_conda_prefix /no/conda",
    )  # fmt: skip
    settings["python_env_conda_packages"] = ["python=2.7"]
    refused(
        provision(playbook, settings, python_env_conda_environment="../x"), tmp_path,
        "python_env_conda_packages asks for Python 2.7; name one of 3.11, 3.12, 3.13",
        "python_env_conda_packages lacks gperftools", "'../x' is no name of an environment",
    )  # fmt: skip
