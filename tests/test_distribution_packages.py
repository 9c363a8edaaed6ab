"""Role distribution_packages: what it says of packages that cannot be installed. Fake: apt-get is a script."""

import subprocess

import pytest
from conftest import REPOSITORY

from plugins.filter.distribution import install_refusal, package_remedy

RSYNC = {"check": "command -v rsync", "package": "rsync"}
VENV = {"check": "x", "package": "python3.12-venv", "remedy": "name another Python"}
LOCKED = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)"
HOLDER = "Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)"


def apt(*lines):
    """A result of the task that runs apt."""
    return {"msg": "non-zero return code", "stderr_lines": list(lines)}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            apt("W: x", "E: Unable to locate package python3.12-venv", "E: Couldn't find any package by glob"),
            "python3.12-venv cannot be installed (E: Unable to locate package python3.12-venv); "
            "add a source of packages that has it, or name another Python",
        ),
        (
            apt("E: Package 'rsync' has no installation candidate"),
            "rsync cannot be installed (E: Package 'rsync' has no installation candidate); "
            "add a source of packages that has it, or install it by hand as root",
        ),
        (
            {"msg": "Failed to install some of the specified packages", "failures": ["No package rsync available."]},
            "rsync cannot be installed (No package rsync available.); "
            "add a source of packages that has it, or install it by hand as root",
        ),
        (
            apt(LOCKED, "E: Unable to acquire the dpkg frontend lock"),
            f"rsync python3.12-venv cannot be installed ({LOCKED}); "
            f"type the same again when that process has ended, or raise distribution_packages_wait_seconds",
        ),
        (
            apt("E: Failed to fetch http://x/rsync.deb  404"),
            "rsync python3.12-venv cannot be installed (E: Failed to fetch http://x/rsync.deb  404); "
            "install by hand as root, or give the host a package mirror and a user who may use sudo",
        ),
        (
            {"msg": "Missing sudo password\nmore"},
            "rsync python3.12-venv cannot be installed (Missing sudo password); "
            "install by hand as root, or give the host a package mirror and a user who may use sudo",
        ),
    ],
)
def test_what_cannot_be_installed_is_named_with_its_own_remedy(result, expected):
    assert install_refusal(result, [RSYNC, VENV, RSYNC]) == expected


def test_remedies_of_packages_that_are_installed_and_do_not_help():
    assert package_remedy([VENV, RSYNC, VENV], "mend it") == "name another Python, and mend it"


@pytest.mark.parametrize("code", [0, 100])
def test_lines_about_waiting_do_not_stand_above_the_reason(tmp_path, code):
    """They come once a second, and end with a carriage return on some versions of apt. The exit code stays."""
    fake = tmp_path / "apt-get"
    waiting = f"printf '{HOLDER}... %s\\r' 0s 1s; echo '{HOLDER}... 2s' >&2"
    fake.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\n{waiting}\necho 'E: x' >&2\necho done\nexit {code}\n")
    fake.chmod(0o755)
    script = (REPOSITORY / "roles/distribution_packages/files/install.sh").read_text()
    done = subprocess.run(
        ["sh", "-s", "600", "rsync", "acl"], input=script, capture_output=True, text=True, timeout=20,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    said = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert (done.returncode, said) == (code, ("E: x\ndone\n", ""))
    assert (tmp_path / "asked").read_text().endswith(" rsync acl\n")
    assert "DPkg::Lock::Timeout=600" in (tmp_path / "asked").read_text()
