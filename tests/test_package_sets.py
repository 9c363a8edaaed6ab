"""Every set of packages that a host may get agrees with what the packages themselves demand.

A set is the lock file of a stack, Intel MPI's runtimes and, with the backend ccl, oneCCL: roles install them one after
the other without resolving, so nothing else compares them. Their metadata comes from the index of this machine; nothing
is installed. The bindings of oneCCL demand nothing: their setup.py has no install_requires.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROLES = Path(__file__).parents[1] / "roles"
CUDA = ("nvidia-", "triton", "cuda-")
"""What the plain index's build of torch demands beside the lock file; python_env installs it where that build came."""


def defaults(role):
    return yaml.safe_load((ROLES / role / "defaults/main.yml").read_text())


def packages(stack, backend):
    lock = (ROLES / f"python_env/files/{stack}.txt").read_text().splitlines()
    pins = [line for line in lock if "==" in line and not line.startswith("#")]
    pins += defaults("intel_mpi")["intel_mpi_packages"]
    return pins + (defaults("oneccl")["oneccl_packages"] if backend == "ccl" else [])


def unmet(report):
    """What is demanded and not there in the version demanded: ``package wants requirement, version``, one a line."""
    found = {canonicalize_name(x["metadata"]["name"]): x["metadata"] for x in report["install"]}
    for metadata in found.values():
        for text in metadata.get("requires_dist", []):
            wanted = Requirement(text)
            name = canonicalize_name(wanted.name)
            if name.startswith(CUDA) or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
                continue
            version = found[name]["version"] if name in found else "none"
            if version == "none" or not wanted.specifier.contains(version, prereleases=True):
                yield f"{metadata['name']} wants {wanted.name}{wanted.specifier}, {version} is there"


@pytest.mark.parametrize(("stack", "backends"), [("native", ["gloo"]), ("ipex", ["ccl", "gloo"])])
def test_a_set_agrees_with_itself(stack, backends, tmp_path):
    """The index is asked about the first set, which holds the others."""
    pins = tmp_path / "pins.txt"
    pins.write_text("\n".join(packages(stack, backends[0])) + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
    subprocess.run([*pip, "--report", tmp_path / "report.json", "--requirement", pins], check=True, timeout=600)
    known = json.loads((tmp_path / "report.json").read_text())["install"]
    for backend in backends:
        names = {canonicalize_name(pin.partition("==")[0]) for pin in packages(stack, backend)}
        installed = [x for x in known if canonicalize_name(x["metadata"]["name"]) in names]
        assert len(installed) == len(names)
        assert list(unmet({"install": installed})) == []


def test_what_development_installs_has_hashes():
    files = [ROLES.parent / "Makefile", *ROLES.parent.glob("scripts/*.sh")]
    installs = [line for file in files for line in file.read_text().splitlines() if "pip install" in line]
    assert installs
    assert [line for line in installs if "--require-hashes" not in line] == []


def test_a_demand_that_is_not_met_is_found():
    demanding = {"name": "oneccl-cpu", "version": "1", "requires_dist": ["impi-rt (==2021.15.*)"]}
    installed = {"name": "impi-rt", "version": "2021.18.1"}
    report = {"install": [{"metadata": demanding}, {"metadata": installed}]}
    assert list(unmet(report)) == ["oneccl-cpu wants impi-rt==2021.15.*, 2021.18.1 is there"]


def test_the_tools_of_the_tests_change_no_package_of_the_environment():
    """They are installed into it without resolving; provisioning would find another version, and make it anew."""
    lock = (ROLES.parent / "requirements-test.txt").read_text().splitlines()
    tools, pins = (
        {canonicalize_name(one.name): str(one.specifier) for one in map(Requirement, lines)}
        for lines in ([line.rstrip(" \\") for line in lock if re.match(r"[\w.-]+==", line)], packages("native", "gloo"))
    )
    assert tools.keys() & pins.keys()
    assert {name: tools[name] for name in tools if name in pins} == {name: pins[name] for name in pins if name in tools}
