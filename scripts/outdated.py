"""Print which packages of an environment have newer versions, and what holds each back: `make outdated`.

    PYTHON outdated.py [--notes FILE]      with the Python of the environment

Asks the index of this machine's pip. What other packages of the environment forbid is read from their metadata, what
the newest version needs from its own; other reasons are in the file of notes, `NAME: reason` a line, and have to be
judged again when the newest version changes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

EXTRAS = ("", "openvino")
"""Extras of packages that an environment has: optimum-intel's."""


def normalized(name: str) -> str:
    """A package's name as PEP 503 compares names."""
    return re.sub("[-_.]+", "-", name).lower()


def holders(name: str, newest: str, required: Mapping[str, Iterable[str]]) -> list[str]:
    """The requirements that ``newest`` of a package does not meet, each as ``package: requirement``.

    Args:
        name: the package.
        newest: its version.
        required: ``{package and version: its requirements}`` of the environment.
    """
    found = []
    for other, texts in required.items():
        for requirement in map(Requirement, texts):
            if normalized(requirement.name) != normalized(name) or requirement.specifier.contains(
                newest, prereleases=True
            ):
                continue
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in EXTRAS):
                found.append(f"{other}: {requirement.specifier}")
    return sorted(set(found))


def needs(requirements: Iterable[str], ours: Mapping[str, str]) -> list[str]:
    """What a version requires that the environment lacks, or has in another version.

    Args:
        requirements: of that version.
        ours: ``{package: version}`` of the environment.
    """
    versions = {normalized(name): version for name, version in ours.items()}
    found = []
    for requirement in map(Requirement, requirements):
        version = versions.get(normalized(requirement.name))
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": one}) for one in EXTRAS):
            continue
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            has = "which is missing" if version is None else f"ours is {version}"
            found.append(f"needs {requirement.name} {requirement.specifier}".rstrip() + f", {has}")
    return sorted(set(found))


def table(
    outdated: Iterable[Mapping[str, str]],
    required: Mapping[str, Sequence[str]],
    notes: Mapping[str, str],
    newest_needs: Callable[[str, str], list[str]],
) -> str:
    """Lines of columns: package, ours, newest, what holds it back.

    Args:
        outdated: of ``pip list --outdated``: ``name``, ``version``, ``latest_version``.
        required: ``{package and version: its requirements}``.
        notes: ``{package: reason}`` that no metadata tells.
        newest_needs: of a package and a version, what that lacks here; asked where nothing else holds the package.
    """
    rows = [("package", "ours", "newest", "held back by")]
    for each in sorted(outdated, key=lambda each: normalized(each["name"])):
        newest = each["latest_version"]
        reasons = holders(each["name"], newest, required)
        reasons += [notes[name] for name in notes if normalized(name) == normalized(each["name"])]
        reasons = reasons or newest_needs(each["name"], newest)
        rows.append((each["name"], each["version"], newest, "; ".join(reasons) or "nothing: raise it"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join((*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3])) for row in rows
    )


def read_notes(text: str) -> dict[str, str]:
    """``{package: reason}`` of lines ``NAME: reason``; ``#`` begins a comment."""
    pairs = (line.partition(":") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {name.strip(): reason.strip() for name, _, reason in pairs}


def pip(*arguments: str) -> Any:
    """What pip says in JSON."""
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: pip could not ask its index (exit code {done.returncode})")
    return json.loads(done.stdout)


def requirements_of(name: str, version: str) -> list[str]:
    """The requirements of a version in the index, which need not be installed."""
    quiet = ("--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-")
    return pip("install", *quiet, f"{name}=={version}")["install"][0]["metadata"].get("requires_dist", [])


def main() -> None:
    """Ask pip and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=Path, help="file of reasons that no metadata tells")
    options = parser.parse_args()
    outdated = pip("list", "--outdated", "--format", "json")
    ours = {each.metadata["Name"]: each.version for each in distributions()}
    required = {f"{each.metadata['Name']} {each.version}": each.requires or [] for each in distributions()}
    notes = read_notes(options.notes.read_text(encoding="utf-8")) if options.notes else {}
    print(table(outdated, required, notes, lambda name, newest: needs(requirements_of(name, newest), ours)))


if __name__ == "__main__":
    main()
