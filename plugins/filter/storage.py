"""What hosts answered about their folders, as the rules of preflight need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Folders = Mapping[str, Mapping[str, Any]]


def storage_marks(answers: Mapping[str, Mapping[str, Any]], own: str) -> list[str]:
    """``NAME=MARK`` of each other host that left a mark, as ``storage.py seen`` takes them."""
    return [f"{host}={said['mark']}" for host, said in answers.items() if host != own and said.get("mark")]


def storage_folders(folders: Folders, fault: str, paths: Iterable[str] = ()) -> str:
    """The folders that have a fault, for a message; each file system once, by the first of them that is on it.

    Args:
        folders: ``folders`` of what ``storage.py look`` printed.
        fault: ``read_only`` or ``noexec``.
        paths: those that are asked about; without any, all.
    """
    wanted = set(paths) or set(folders)
    at: dict[str, str] = {}
    for path, said in folders.items():
        if path in wanted and said[fault]:
            at.setdefault(said["at"], path)
    return ", ".join(at.values())


def mode_text(mode: str | int) -> str:
    """A mode as four octal digits. ``mode``: text, or the number that YAML makes of one that begins with 0."""
    return f"{mode:04o}" if isinstance(mode, int) else str(mode).zfill(4)


def file_mode(mode: str | int) -> str:
    """The mode of a file in a folder of this mode: ``0640`` in ``0750``."""
    return f"{int(mode_text(mode), 8) & 0o666:04o}"


def umask_of(mode: str | int) -> str:
    """The umask with which folders get this mode: ``0027`` for ``0750``."""
    return f"{0o777 & ~int(mode_text(mode), 8):04o}"


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Any]:
        """``{name: function}``."""
        functions = (storage_marks, storage_folders, mode_text, file_mode, umask_of)
        return {function.__name__: function for function in functions}
