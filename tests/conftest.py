"""Run playbooks as a user types them, on this machine and in the test's own work_dir."""

import contextlib
import json
import random
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).parents[1]
sys.path += [str(REPOSITORY), str(REPOSITORY / "scripts")]  # for plugins.filter and the like
from play import play  # noqa: E402 - the entry point for programs, which the tests use too

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


def playbook_in(folder: Path) -> Callable[..., SimpleNamespace]:
    """A function that runs a playbook of the repository; settings become extra variables over inventory/local.

    Its result has the fields of subprocess's, and the events and their summaries (play.PlaybookResult).

    Args:
        folder: gets ``work`` and ``artifacts``.
    """
    port = free_port()  # a run on this machine may use the default port

    def run(*args: str, **settings: object) -> SimpleNamespace:
        variables = {
            "work_dir": str(folder / "work"),
            "artifacts_dir": str(folder / "artifacts"),
            "launch_config_master_port": port,
            **settings,
        }
        done = play(*args, "--extra-vars", json.dumps(variables), timeout=900)
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
        '#!/bin/sh\ncase "$*" in *--check*) if [ -e "$0.refuse" ]; then cat "$0.refuse" >&2; exit 2; fi ;; esac\n'
        '[ "$4" != meet ] || { shift 4; exec "$@"; }\n'  # as python -P -m sdtune.launch meet COMMAND
    )
    mpirun = work / "env/native/bin/mpirun"
    mpirun.write_text('#!/bin/sh\necho "mpirun $*"\n')
    for script in (python, mpirun):
        script.chmod(0o755)
    return work
