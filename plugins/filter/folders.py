"""Folders that hold the same files on all hosts: what differs, and which host gets them from which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any


def changed_files(wanted: Iterable[str], found: Iterable[str]) -> list[str]:
    """Names of the files that are missing, different or foreign; both lists hold lines as sha256sum prints them."""
    return sorted({line.partition("  ")[2] for line in set(wanted) ^ set(found)})


def some_names(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:most]) + (" and more" if len(names) > most else "")


def copy_rounds(hosts: Sequence[str]) -> int:
    """Rounds until all hosts have what the first one has, when every host that has it serves one other a round."""
    return max(0, len(hosts) - 1).bit_length()


def copy_round(hosts: Sequence[str], host: str) -> int:
    """The round, from 0 on, in which a host pulls; -1 for the first one, which has the files.

    In round r the hosts at positions 2^r to 2^(r+1)-1 pull.
    """
    return hosts.index(host).bit_length() - 1


def copy_source(hosts: Sequence[str], host: str) -> str:
    """The host that another one pulls from: in round r the one 2^r positions before it."""
    position = hosts.index(host)
    return hosts[position - 2 ** copy_round(hosts, host)] if position else host


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {
            "changed_files": changed_files,
            "some_names": some_names,
            "copy_rounds": copy_rounds,
            "copy_round": copy_round,
            "copy_source": copy_source,
        }
