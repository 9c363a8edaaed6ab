"""Python packages: what hosts have, what lock files pin, which wheels of it are there, and where pip gets them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

_SHOWN = 5  # names in a message


def normalized_pin(pin: str) -> str:
    """``Name-of.it==1.0+cpu`` as ``name_of_it==1.0``: the spelling of wheels, without a local version."""
    name, _, version = pin.partition("==")
    return f"{re.sub('[-_.]+', '_', name.strip()).lower()}=={version.strip().lower().partition('+')[0]}"


def _runs_on(wheel: str, minor: str) -> bool:
    """Whether the tags of a wheel's file name allow a CPython of this minor version (``3.11``)."""
    interpreters, abi = PurePath(wheel).stem.split("-")[-3:-1]
    major, _, number = minor.partition(".")
    for tag in interpreters.split("."):
        if tag in (f"cp{major}{number}", f"py{major}", f"py{major}{number}"):
            return True
        if "abi3" in abi and (found := re.fullmatch(rf"cp{major}([0-9]+)", tag)) and int(found[1]) <= int(number):
            return True
    return False


def missing_wheels(wanted: Iterable[str], files: Iterable[str], python: str = "") -> list[str]:
    """Those of ``wanted`` (``name==version``) of which there is no wheel among ``files`` (names or paths).

    ``python`` is the minor version of the Python that has to be able to use it; empty where it is not known yet.
    """
    parts = [PurePath(file).name.split("-") for file in files if not python or _runs_on(file, python)]
    present = {normalized_pin(f"{part[0]}=={part[1]}") for part in parts if len(part) > 2}
    return [pin for pin in wanted if normalized_pin(pin) not in present]


def fitting_wheels(files: Iterable[str], pin: str, python: str = "") -> list[str]:
    """The wheels among ``files`` (names or paths) that a host can use for a pinned package.

    Args:
        files: wheels.
        pin: ``name==version``. Without a local version, any counts but one for other devices: only those for CPUs
            where there are any, else those that name none.
        python: minor version of the host's Python; empty where it is not known yet.
    """
    found = [file for file in files if not missing_wheels([pin], [file], python)]
    by_device = {file: PurePath(file).name.split("-")[1].partition("+")[2] for file in found}
    return [file for file in found if by_device[file] == "cpu"] or [file for file in found if not by_device[file]]


def python_minor(text: str | None) -> str:
    """``3.11`` of ``Python 3.11.2`` or of ``python=3.11.13``; empty where no version is named."""
    found = re.search(r"^python *=* *([0-9]+\.[0-9]+)", text or "", re.IGNORECASE)
    return found.group(1) if found else ""


def venv_package(python: str, family: str) -> str:
    """The distribution's package with ``venv`` and ``ensurepip`` of a Python.

    Args:
        python: Name of its command; ``python3.12`` has a package of its own on Debian, as from deadsnakes.
        family: ``ansible_facts['os_family']``.
    """
    if family != "Debian":
        return "python3"
    return f"{python}-venv" if re.fullmatch(r"python3\.\d+", python) else "python3-venv"


def named_packages(
    wanted: Iterable[Mapping[str, str]], called: Mapping[str, Mapping[str, str]], facts: Mapping[str, Any]
) -> list[dict[str, str]]:
    """``wanted`` with each ``package`` by the name that it has on a host.

    Args:
        wanted: mappings with ``package``, by its name in Debian 12.
        called: ``{package: {system: name}}`` for what is called otherwise. A system is a family (``RedHat``), a
            distribution (``Ubuntu``), or one from a major version on (``Debian 13``). The most specific one counts.
            A host without a number, such as Debian's testing, is newer than all.
        facts: the host's ``os_family``, ``distribution`` and ``distribution_major_version``.
    """
    distribution, version = facts["distribution"], re.match(r"\d+", str(facts["distribution_major_version"]))

    def name(package: str) -> str:
        names = called.get(package, {})
        since = [int(system.split()[-1]) for system in names if re.fullmatch(rf"{re.escape(distribution)} \d+", system)]
        fitting = sorted((first for first in since if not version or first <= int(version[0])), reverse=True)
        systems = [*(f"{distribution} {first}" for first in fitting), distribution, facts["os_family"]]
        return next((names[system] for system in systems if system in names), package)

    return [{**each, "package": name(each["package"])} for each in wanted]


def conda_python(packages: Iterable[str]) -> str:
    """Minor version of Python that a list of conda packages asks for; empty where it names none."""
    return next(filter(None, map(python_minor, packages)), "")


def pinned_version(lines: Sequence[str], name: str) -> str:
    """Version that the lines of a lock file pin a package to; empty where they do not."""
    wanted = normalized_pin(name).removesuffix("==")
    pins = (line.partition("==") for line in lines if "==" in line)
    return next((version.strip() for other, _, version in pins if normalized_pin(other) == f"{wanted}=="), "")


def is_url(text: str) -> bool:
    """Whether a text is a URL that pip reads."""
    return re.match(r"(file|https?)://.", text) is not None


def environment_state(inspected: Sequence[str], problems: Mapping[str, str]) -> list[str]:
    """The state of an environment, and the reason where it is broken.

    Args:
        inspected: the lines of environment.sh.
        problems: of module installed_packages; they count where names and sizes are right.
    """
    if inspected[0] != "intact" or not problems:
        return list(inspected)
    named = [f"{pin.partition('==')[0]} {problem}" for pin, problem in problems.items()]
    return ["broken", ", ".join(named[:_SHOWN]) + (" and more" if len(named) > _SHOWN else "")]


def pip_index_args(url: str) -> list[str]:
    """Arguments of pip for an index: none for its own, and plain HTTP has to be trusted by name."""
    if not url:
        return []
    return ["--index-url", url, *(["--trusted-host", urlsplit(url).netloc] if url.startswith("http:") else [])]


def pip_links_args(source: str, folder: str) -> list[str]:
    """Arguments of pip for wheels that are on no index: those of a page or file URL, else those of ``folder``."""
    if not is_url(source):
        return ["--no-index", "--find-links", folder]
    trusted = ["--trusted-host", urlsplit(source).netloc] if source.startswith("http:") else []
    return ["--no-index", "--find-links", source, *trusted]


def torch_source(source: str, index: str) -> str:
    """Where torch comes from, as a message says it.

    Args:
        source: ``python_env_source``.
        index: The index that was chosen for torch; empty for pip's own.
    """
    if index:
        return index
    if source != "index":
        return "the same place"
    return (
        "there too (the CPU index was not asked or gave no answer): a plain index serves a CUDA build of several GB; "
        "set python_env_torch_index to an index of CPU builds if that is what happens"
    )


def package_differences(own: Iterable[str], reference: Iterable[str], reference_host: str) -> str:
    """How the packages of a host differ from another's, for a message; empty where they do not."""
    own, reference = set(own), set(reference)
    if own == reference:
        return ""
    more, fewer = sorted(own - reference), sorted(reference - own)
    has = ", ".join(more[:_SHOWN]) or "nothing"
    lacks = ", ".join(fewer[:_SHOWN]) or "nothing"
    return (
        f"it has {has}{' and more' if len(more) > _SHOWN else ''} where {reference_host} has "
        f"{lacks}{' and more' if len(fewer) > _SHOWN else ''}"
    )


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {
            "environment_state": environment_state,
            "missing_wheels": missing_wheels,
            "fitting_wheels": fitting_wheels,
            "python_minor": python_minor,
            "venv_package": venv_package,
            "named_packages": named_packages,
            "conda_python": conda_python,
            "pinned_version": pinned_version,
            "is_url": is_url,
            "pip_index_args": pip_index_args,
            "pip_links_args": pip_links_args,
            "torch_source": torch_source,
            "package_differences": package_differences,
        }
