"""Filters of the roles manifest and teardown: the list of what provisioning made on a host, and what to remove."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

KINDS = {"tree": "trees", "holder": "holders", "user": "users"}


def manifest_lines(trees: Iterable[str], holders: Iterable[str], made: Iterable[str]) -> list[str]:
    """The arguments of note.sh: ``tree PATH``, ``holder PATH``, and ``made LINE``."""
    return [*(f"tree {path}" for path in trees), *(f"holder {path}" for path in holders), *(f"made {x}" for x in made)]


def manifest_read(text: str) -> dict[str, list[str]]:
    """The entries of a manifest: ``trees``, ``holders`` (the deepest paths first) and ``users``."""
    found: dict[str, list[str]] = {name: [] for name in KINDS.values()}
    for line in text.splitlines():
        kind, _, value = line.partition(" ")
        if kind in KINDS and value:
            found[KINDS[kind]].append(value)
    found["holders"].sort(reverse=True)
    return found


def manifest_kept(text: str, runs: str) -> str:
    """What the manifest says of things that teardown leaves: users, shared folders, and the folder of the runs."""
    kept = [line for line in text.splitlines() if line.startswith(("user ", "holder "))]
    kept.sort(key=lambda line: line.startswith("holder "))
    if f"tree {runs}" in text.splitlines():
        kept.append(f"tree {runs}")
    return "".join(f"{line}\n" for line in kept)


def teardown_summary(
    left: Sequence[str],
    work_dir: str,
    runs: str,
    manifest: str = "",
    user: str = "",
    home: Sequence[str] = (),
) -> str:
    """What stays on a host, and why.

    Args:
        left: the paths that are left in ``work_dir``.
        work_dir: folder that everything was installed below.
        runs: folder of the runs.
        manifest: path of the manifest if there was none, else empty.
        user: the run user if provisioning created that account, else empty.
        home: what others left in the user's home.
    """
    parts = []
    if manifest:
        parts.append(f"{manifest} does not exist, so nothing but the key was ours to remove")
    if left:
        parts.append(f"{work_dir} stays, with {', '.join(os.path.relpath(path, work_dir) for path in left)}")
        if runs in left:
            parts.append("runs are kept unless teardown_runs=true")
    if user and (left or home):
        parts.append(f"the user {user} stays, whose home holds {', '.join(home) or 'it'}")
    return "; ".join(parts) or "nothing of it is left"


class FilterModule:
    """Make the functions filters."""

    def filters(self) -> dict[str, Any]:
        """``{name: function}``."""
        return {
            function.__name__: function for function in (manifest_lines, manifest_read, manifest_kept, teardown_summary)
        }
