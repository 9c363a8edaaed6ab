"""Packages of the distribution that cannot be installed: what apt or dnf said, and what the user can do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What apt and dnf say of a package that none of their sources has.
_UNKNOWN = re.compile(
    r"E: Unable to locate package (?P<apt>\S+)|E: Package '(?P<gone>[^']+)' has no installation candidate"
    r"|No package (?P<dnf>\S+) available|No match for argument: (?P<match>\S+)"
)
_LOCKED = re.compile(r"Could not get lock|lockfile is held|Unable to acquire the dpkg")


def _said(result: Mapping[str, Any]) -> list[str]:
    """What went wrong with a task, as lines: apt's errors, else the message of Ansible's module and its failures."""
    errors = [line for line in result.get("stderr_lines") or [] if line.startswith("E: ")]
    more = [str(line) for line in result.get("failures") or []]
    return errors or [*more, *str(result.get("msg") or "no reason given").splitlines()[:1]]


def install_refusal(result: Mapping[str, Any], missing: Iterable[Mapping[str, str]]) -> str:
    """Why packages cannot be installed, and the remedy.

    Args:
        result: of the task that failed.
        missing: what was to be installed: each a ``package``, and its ``remedy`` where it has one of its own.

    Returns:
        ``PACKAGES cannot be installed (REASON); REMEDY``. Only those are named that no source has, if there are any:
        the others are not installed because of them.
    """
    said, wanted = _said(result), list(missing)
    unknown = {name for line in said for found in _UNKNOWN.finditer(line) for name in found.groups() if name}
    culprits = [each for each in wanted if each["package"] in unknown]
    names = " ".join(dict.fromkeys(each["package"] for each in culprits or wanted))
    if culprits:
        own = package_remedy(culprits, "install it by hand as root")
        remedy = f"add a source of packages that has it, or {own}"
    elif any(map(_LOCKED.search, said)):
        remedy = "type the same again when that process has ended, or raise distribution_packages_wait_seconds"
    else:
        remedy = "install by hand as root, or give the host a package mirror and a user who may use sudo"
    return f"{names} cannot be installed ({said[0]}); {remedy}"


def package_remedy(packages: Sequence[Mapping[str, str]], otherwise: str) -> str:
    """The remedies of packages, each once; ``otherwise`` for those that have none of their own."""
    return ", and ".join(dict.fromkeys(each.get("remedy") or otherwise for each in packages))


class FilterModule:
    """Make the functions filters."""

    def filters(self) -> dict[str, Any]:
        """``{name: function}``."""
        return {function.__name__: function for function in (install_refusal, package_remedy)}
