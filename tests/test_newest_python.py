"""scripts/newest-python.sh: which Python the control node gets."""

import os
import subprocess

import pytest
from conftest import REPOSITORY

FAKE = """#!/bin/sh
case "$2" in
  *version_info*) [ -n "{version}" ] && echo "{version}" ;;
  *) [ -n "{venv}" ] ;;
esac
"""


@pytest.fixture
def choose(tmp_path):
    """Run the script where these commands are: {name: (version, whether it has venv)}; no version: it does not run."""

    def run(commands, **environment):
        for name, (version, venv) in commands.items():
            command = tmp_path / name
            command.write_text(FAKE.format(version=version, venv="yes" if venv else ""))
            command.chmod(0o755)
        (tmp_path / "bash").symlink_to("/bin/bash")
        script = ["/bin/bash", str(REPOSITORY / "scripts/newest-python.sh")]
        known = {name: value for name, value in os.environ.items() if name != "PYTHON"}
        done = subprocess.run(
            script, env={**known, "PATH": str(tmp_path), **environment}, capture_output=True, text=True, check=False
        )
        return done.stdout.strip().removeprefix(f"{tmp_path}/"), done.stderr.strip()

    return run


HERE = {"python3": ("3.11", True), "python3.12": ("3.12", True), "python3.13": ("3.13", True)}


@pytest.mark.parametrize(
    ("commands", "chosen"),
    [
        ({"python3": ("3.11", True)}, "python3"),
        (HERE, "python3.13"),
        (HERE | {"python3.13": ("", True)}, "python3.12"),
        (HERE | {"python3.13": ("3.13", False)}, "python3.12"),
        (HERE | {"python3": ("3.15", True)}, "python3.13"),
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
        ({"python3": ("3.13", False), "python3.13": ("3.13", False)}, {}, "python3.13 lacks venv, python3 lacks venv"),
        (HERE, {"PYTHON": "python3.14"}, "there is no python3.14"),
        ({}, {}, "there is no python3"),
    ],
)
def test_what_was_found_in_its_place(choose, commands, environment, said):
    assert choose(commands, **environment) == (
        "", f"error: the control node needs Python 3.11 to 3.14 with venv; here {said}",
    )  # fmt: skip
