"""scripts/newest-python.sh: which Python the control node gets. scripts/control-node.sh: what it does of that."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

FAKE = """#!/bin/sh
case "$2" in
  *base_prefix*) echo "Python {version} of /fake" ;;
  *version_info*) [ -n "{version}" ] && echo "{version} {path}" ;;
  *) [ -n "{venv}" ] ;;
esac
"""


def fake(folder, commands):
    """Make commands {name: (version, whether it has venv)}, with their path as a third where it is another one."""
    folder.mkdir(exist_ok=True)
    for name, (version, venv, *path) in commands.items():
        command = folder / name
        command.write_text(FAKE.format(version=version, venv="yes" if venv else "", path=(path or [command])[0]))
        command.chmod(0o755)


def started(script, path, **environment):
    """The script with these folders of commands."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    command = ["/bin/bash", str(script), *(["requirements.txt"] if script.name == "control-node.sh" else [])]
    return subprocess.run(
        command, env={**known, "PATH": path, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def choose(tmp_path):
    """Run the script where these commands are; no version: it does not run."""

    def run(commands, **environment):
        fake(tmp_path, commands)
        (tmp_path / "bash").symlink_to("/bin/bash")
        done = started(REPOSITORY / "scripts/newest-python.sh", str(tmp_path), **environment)
        return tuple(said.strip().replace(f"{tmp_path}/", "") for said in (done.stdout, done.stderr))

    return run


HERE = {"python3": ("3.11", True), "python3.12": ("3.12", True), "python3.13": ("3.13", True)}
FOREIGN = ("3.13", True, "/usr/bin/true")


@pytest.mark.parametrize(
    ("commands", "chosen"),
    [
        ({"python3": ("3.11", True)}, "python3"),
        (HERE, "python3.13"),
        (HERE | {"python3.13": ("", True)}, "python3.12"),
        (HERE | {"python3.13": ("3.13", False)}, "python3.12"),
        (HERE | {"python3": ("3.15", True)}, "python3.13"),
        (HERE | {"python3.10": ("3.10", True), "python3.15": ("3.15", True)}, "python3.13"),
        (HERE | {"python3.13": FOREIGN}, "/usr/bin/true"),
    ],
)
def test_the_newest_that_works(choose, commands, chosen):
    assert choose(commands) == (chosen, "")


def test_another_one_on_demand(choose):
    assert choose(HERE, PYTHON="python3.12") == ("python3.12", "")


@pytest.mark.parametrize(
    ("commands", "environment", "said"),
    [
        ({"python3": ("3.9", True)}, {}, "python3 is Python 3.9"),
        (
            {"python3": ("3.13", False), "python3.13": ("3.13", False)}, {},
            "python3.13 is Python 3.13 without venv, python3 is Python 3.13 without venv",
        ),
        (
            {
                "python3": ("3.9", True), "python3.9": ("3.9", True), "python3.15": ("3.15", True),
                "python3.10": ("3.10", True), "python3.10-config": ("3.10", True),
                "python3.8": ("", True), "python3.12": ("", True),
            }, {},
            "python3.12 does not run, python3 is Python 3.9, python3.10 is Python 3.10, python3.15 is Python 3.15",
        ),
        ({"python3.10": ("3.10", True)}, {}, "python3.10 is Python 3.10"),
        (HERE, {"PYTHON": "python3.14"}, "there is no python3.14"),
        ({}, {}, "there is no python3"),
    ],
)  # fmt: skip
def test_what_was_found_in_its_place(choose, commands, environment, said):
    assert choose(commands, **environment) == (
        "", f"error: the control node needs Python 3.11 to 3.14 with venv; here {said}",
    )  # fmt: skip


def test_the_python_of_an_active_virtualenv_is_the_one_behind_it(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "active"], check=True)
    (tmp_path / "active/bin/bash").symlink_to("/bin/bash")
    done = started(REPOSITORY / "scripts/newest-python.sh", str(tmp_path / "active/bin"))
    assert done.returncode == 0, done.stderr
    found = [
        done.stdout.strip(),
        "-c",
        "import sys; print(sys.prefix == sys.base_prefix == sys.argv[1])",
        sys.base_prefix,
    ]
    assert subprocess.run(found, capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.fixture
def control_node(tmp_path):
    """Run control-node.sh in a folder of its own, where packages.sh only says what it would install, and fails."""
    scripts = tmp_path / "clone/scripts"
    scripts.mkdir(parents=True)
    for name in ("control-node.sh", "newest-python.sh"):
        shutil.copy(REPOSITORY / "scripts" / name, scripts)
    (scripts / "packages.sh").write_text('#!/bin/sh\n[ $# -gt 1 ] || { echo "installs $1"; exit 1; }\n')
    (scripts / "packages.sh").chmod(0o755)
    (tmp_path / "clone/requirements.txt").touch()

    def run(commands, **environment):
        fake(tmp_path / "bin", commands)
        return started(scripts / "control-node.sh", f"{tmp_path}/bin:/usr/bin:/bin", **environment)

    return run


def without(version):
    """The commands of this machine may be any: each supported one is a fake that does not run, but for this."""
    commands = {f"python3.{minor}": ("", False) for minor in range(11, 15)} | {"python3": ("", False)}
    return commands | {f"python{version}": (version, False, f"/usr/bin/python{version}")}


@pytest.mark.parametrize("environment", [{}, {"PYTHON": "python3.12"}])
def test_the_package_is_that_of_the_chosen_python(control_node, environment):
    done = control_node(without("3.12") | {"python3": ("3.9", True)}, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (1, "installs :python3.12-venv\n", "")


def test_no_package_for_a_python_that_is_not_of_the_distribution(control_node):
    done = control_node(without("3.12") | {"python3.12": ("3.12", False, "/opt/python3.12")})
    assert (done.returncode, done.stdout) == (1, "")
    assert "/opt/python3.12 is Python 3.12 without venv" in done.stderr


def test_another_python_than_that_of_the_environment_is_refused(control_node, tmp_path):
    """And the environment stays; with its own Python, or with none named, it is used."""
    environment, lock = tmp_path / "clone/.venv", "e3b0c44298fc1c14"  # of an empty file
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (environment / "lib/python{}.{}/site-packages/pip".format(*sys.version_info)).mkdir()
    (environment / f".requirements.txt-{lock}").touch()
    own = "{}.{}".format(*sys.version_info)
    done = control_node({"python3.14": ("3.14", True)}, PYTHON="python3.14")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: .venv has Python {own} of {sys.base_prefix}, and PYTHON=python3.14 is Python 3.14 of /fake; "
        f"remove {environment}, or leave PYTHON out\n"
    )
    for named in ({}, {"PYTHON": sys.executable}):
        done = control_node({}, **named)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
