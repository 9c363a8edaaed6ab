"""Run playbooks as a user types them, on this machine and in the test's own work_dir."""

import contextlib
import ctypes
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).parents[1]
# For plugins.filter and the like.
sys.path += [str(REPOSITORY), str(REPOSITORY / "scripts"), str(REPOSITORY / "python")]
from play import play  # noqa: E402 - the entry point for programs, which the tests use too

COLLECTION = "sdtune.sdtune"
ROLES = sorted(path.parent.parent.name for path in REPOSITORY.glob("roles/*/meta/main.yml"))


# The longest first, so that only short files are left for one of two workers at the end.
LONGEST = [
    "test_conda", "test_folders", "test_refusals", "test_launch_config", "test_upgrade", "test_oneccl", "test_demo",
    "test_lab", "test_attach", "test_playbooks", "test_teardown",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in this order; pytest-xdist keeps it with --no-loadscope-reorder."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def free_port() -> int:
    """A port that is free, and that the Linux kernel does not assign to others before the playbook uses it."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.SystemRandom().randrange(20_000, 29_000)  # below launch_config_port_range
            probe.bind(("", port))
            return port


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """A network namespace with loopback only, for this thread and what it starts.

    What runs claim of a host is valid in one (standalone/host_claims.py): other tests meanwhile do not see a run there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    clone_newnet = 0x40000000  # <linux/sched.h>

    def entered(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "network namespace")

    entered(libc.unshare(clone_newnet))
    try:
        subprocess.run(["ip", "link", "set", "dev", "lo", "up"], check=True)
        yield
    finally:
        entered(libc.setns(before, clone_newnet))
        os.close(before)


def call(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would who has no configuration."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return subprocess.run(command, cwd=cwd, env={**own, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The collection, as `make collection` builds it."""
    folder = tmp_path_factory.mktemp("built")
    galaxy = shutil.which("ansible-galaxy")
    done = call(str(REPOSITORY / "scripts/collection.sh"), galaxy, str(folder), cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def project(archive, tmp_path_factory):
    """A folder that the installed collection has laid out, and a function that runs ansible-playbook there."""
    folder = tmp_path_factory.mktemp("project")
    known = {"HOME": str(folder), "PWD": str(folder)}  # ~/.ansible/collections is where users install
    done = call("ansible-galaxy", "collection", "install", "--offline", str(archive), cwd=folder, **known)
    assert done.returncode == 0, done.stderr

    def typed_in(where: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return call("ansible-playbook", *args, cwd=where, **{**known, **environment})

    def typed(*args: str) -> subprocess.CompletedProcess[str]:
        return typed_in(folder, *args)

    laid = typed(f"{COLLECTION}.project")
    assert laid.returncode == 0, laid.stdout + laid.stderr
    collections = folder / ".ansible/collections"
    return SimpleNamespace(
        folder=folder,
        play=typed,
        play_in=typed_in,
        collection=collections.joinpath("ansible_collections", *COLLECTION.split(".")),
        environment={
            "ANSIBLE_CONFIG": str(folder / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_CALLBACK_PLUGINS": "", "ANSIBLE_STDOUT_CALLBACK": f"{COLLECTION}.reason_first",
        },
    )  # fmt: skip


def playbook_in(folder: Path, environment: Mapping[str, str] | None = None) -> Callable[..., SimpleNamespace]:
    """A function that runs a playbook; settings become extra variables over inventory/local.

    Its result has the fields of subprocess's, and the events and their summaries (play.PlaybookResult).

    Args:
        folder: gets ``work`` and ``artifacts``.
        environment: of ansible-playbook, where it is not that of a clone.
    """
    port = free_port()  # a run on this machine may use the default port

    def run(*args: str, **settings: object) -> SimpleNamespace:
        variables = {
            "work_dir": str(folder / "work"),
            "artifacts_dir": str(folder / "artifacts"),
            "launch_config_master_port": port,
            **settings,
        }
        done = play(*args, "--extra-vars", json.dumps(variables), environment=environment, timeout=900)
        print(done.stdout)  # pytest shows it of a test that fails
        return SimpleNamespace(returncode=done.rc, stdout=done.stdout, stderr="", played=done)

    return run


@pytest.fixture
def playbook(tmp_path):
    """playbook_in the test's own folder."""
    return playbook_in(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    """A picture folder; Ansible looks at names and first bytes only."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(b"\xff\xd8\xff picture %d" % i)
    return folder


@pytest.fixture
def model(tmp_path):
    """A copy of the embedded model, for a test to break."""
    return Path(shutil.copytree(REPOSITORY / "toyworld/model", tmp_path / "model"))


@pytest.fixture
def provisioned(tmp_path):
    """A work_dir that looks provisioned. Fakes: python and mpirun are scripts.

    The fake of python becomes the program that it would start with a port. While the file python.refuse is beside it,
    it prints that and fails when it is to check a job.
    """
    work = tmp_path / "work"
    files = ("env/native/lib/libiomp5.so", "lib/native/libtcmalloc.so", "models/toyworld.sha256", "data/concept.sha256")
    for name in files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).touch()
    for name in ("sdtune/python", "models/toyworld", "data/concept", "env/native/bin"):
        (work / name).mkdir(parents=True, exist_ok=True)
    python = work / "env/native/bin/python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *check_jobs*)\n'
        '  cat > /dev/null; if [ -e "$0.refuse" ]; then cat "$0.refuse" >&2; exit 2; fi ;; esac\n'
        '[ "$4" != meet ] || { shift 4; exec "$@"; }\n'  # as python -P -m sdtune.launch meet COMMAND
    )
    mpirun = work / "env/native/bin/mpirun"
    mpirun.write_text('#!/bin/sh\necho "mpirun $*"\n')
    for script in (python, mpirun):
        script.chmod(0o755)
    return work
