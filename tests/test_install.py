"""roles/python_env/files/install.py: what pip is told and set up with, uv is told too; both install the same files."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from wheel_fake import make_index, make_wheel

SCRIPT = REPOSITORY / "roles/python_env/files/install.py"
SPEC = importlib.util.spec_from_file_location("install", SCRIPT)
installer = importlib.util.module_from_spec(SPEC)
sys.modules["install"] = installer
SPEC.loader.exec_module(installer)
UV = Path(sys.executable).with_name("uv")


def told(listing, *arguments):
    """The arguments of uv after those that never change, and its variables."""
    command, variables = installer.uv_command("uv", listing, list(arguments))
    return command[command.index("--no-progress") + 1 :], variables


def test_what_pip_is_set_up_with_is_told_to_uv():
    listing = "\n".join(
        [
            "global.cert='/etc/ca.pem'",
            "global.index-url='https://far/simple'",
            "global.extra-index-url='file:///a file:///b'",
            "global.find-links='\\n/srv/wheels\\nhttps://near/wheels'",
            "install.index-url='https://near/simple'",
            "list.format='columns'",
            ":env:.default-timeout='30'",
            ":env:.disable-pip-version-check='1'",
            ":env:.no-deps='false'",
        ]
    )
    arguments, variables = told(listing, "--no-deps", "--no-compile", "--progress-bar=off", "torch==1")
    assert arguments == [
        *("--index-url", "https://near/simple", "--extra-index-url", "file:///a", "--extra-index-url", "file:///b"),
        *("--find-links", "/srv/wheels", "--find-links", "https://near/wheels", "--no-deps", "torch==1"),
    ]  # fmt: skip
    assert variables == {"SSL_CERT_FILE": "/etc/ca.pem", "UV_HTTP_TIMEOUT": "30"}


def test_an_argument_replaces_what_is_set_up_and_no_index_means_none():
    listing = "global.index-url='https://far/simple'\nglobal.extra-index-url='https://more/simple'"
    mine = ["--index-url", "http://near/simple", "--trusted-host", "near"]
    arguments, _ = told(listing, *mine, "x")
    assert arguments == ["--extra-index-url", "https://more/simple", *mine[:2], "--allow-insecure-host", "near", "x"]
    assert told(listing, "--no-index", "--find-links", "/w", "x")[0] == ["--no-index", "--find-links", "/w", "x"]


@pytest.mark.parametrize(
    ("listing", "arguments", "named"),
    [
        ("global.proxy='http://p:3128'", ["x"], "proxy"),
        ("install.user='true'", ["x"], "user"),
        ("", ["--global-option=-O2", "x"], "global-option"),
        ("", ["--inde", "https://x", "y"], "inde"),  # pip would take an abbreviation
    ],
)
def test_what_uv_has_nothing_for_is_named(listing, arguments, named):
    with pytest.raises(installer.Untranslatable, match=f"^{named}$"):
        told(listing, *arguments)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """URL of an index with two fake packages."""
    folder = tmp_path_factory.mktemp("index")
    make_wheel(folder / "wheels", "one", "1.0", {"one.py": "number = 1\n"}, requires=["two"])
    make_wheel(folder / "wheels", "two", "2.0", {"two.py": "number = 2\n"})
    return make_index(folder / "simple", folder / "wheels")


def install(folder, choice, *arguments, uv=True, **variables):
    """Install into a new environment in ``folder``; with or without uv on the PATH."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    path = os.pathsep.join([*([str(UV.parent)] if uv else []), "/usr/bin", "/bin"])
    env = {"PATH": path, "HOME": str(folder), "PIP_CONFIG_FILE": os.devnull, **variables}
    command = [folder / "bin/python", "-I", "-", choice, *arguments]
    return subprocess.run(command, input=SCRIPT.read_text(), env=env, capture_output=True, text=True)


def files(folder):
    """The packages' files in an environment; who installed them, and when, is not compared."""
    [site] = folder.glob("lib/python*/site-packages")
    found = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    different = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json")
    return {p for p in found if p.startswith(("one", "two")) and not p.endswith((".pyc", *different))}


def test_both_install_the_same_files(tmp_path, index):
    """From an index in pip's environment variables, which uv does not read."""
    pip, uv = (tmp_path / name for name in ("pip", "uv"))
    for folder in (pip, uv):
        done = install(folder, folder.name, "--no-deps", "--no-compile", "one==1.0", PIP_INDEX_URL=index)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].startswith(f"installed with {folder.name}")
    assert files(pip) == files(uv) != set()
    assert not any(name.startswith("two") for name in files(uv))
    checked = subprocess.run([uv / "bin/python", "-m", "pip", "check"], capture_output=True, text=True)
    assert "one 1.0 requires two, which is not installed" in checked.stdout


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"uv": False}, "uv is not on the PATH"),
        ({"PIP_NO_CLEAN": "1"}, "uv has nothing for pip's setting no-clean"),
    ],
)
def test_auto_says_why_it_takes_pip_and_uv_refuses(tmp_path, index, given, why):
    arguments = ["--no-deps", "one==1.0"]
    done = install(tmp_path / "a", "auto", *arguments, PIP_INDEX_URL=index, **given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"installed with pip: {why}"
    refused = install(tmp_path / "b", "uv", *arguments, PIP_INDEX_URL=index, **given)
    assert (refused.returncode, files(tmp_path / "b")) == (2, set())
    assert refused.stderr == f"python_env_installer is uv, but {why}; set it to auto or pip\n"


def test_a_package_that_is_not_there_is_an_error_of_both(tmp_path, index):
    for choice in ("pip", "uv"):
        done = install(tmp_path / choice, choice, "--no-deps", "three==3.0", PIP_INDEX_URL=index)
        assert done.returncode != 0
        assert "three==3.0" in done.stderr
