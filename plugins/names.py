"""Names that people mistype, and that Ansible would silently ignore: tags, and variables.

The names of the project are those that its roles and playbooks mention; there is no second list.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from plugins.typed import declared

SPECIAL_TAGS = frozenset(("all", "always", "never", "tagged", "untagged"))
"""Tags that Ansible itself knows."""
_NAME = re.compile(r"\b[a-z][a-z0-9_]*_[a-z0-9_]*[a-z0-9]\b")


class Judged(NamedTuple):
    """What is said of names, a line for each."""

    wrong: list[str]
    """To be refused."""
    odd: list[str]
    """To be warned of."""


@functools.cache
def mentioned(repository: Path) -> frozenset[str]:
    """Every word with an underscore in the YAML files of roles and playbooks: the variables, and more."""
    files = [*repository.glob("roles/*/*/*.yml"), *repository.glob("playbooks/*.yml")]
    return frozenset(name for path in files for name in _NAME.findall(path.read_text(encoding="utf-8")))


@functools.cache
def _common(repository: Path) -> frozenset[str]:
    """The variables without a prefix, which every inventory sets."""
    constants = yaml.safe_load((repository / "roles/cluster/vars/main.yml").read_text(encoding="utf-8"))
    return frozenset(constants["_cluster_required"])


def _nearest(name: str, known: Iterable[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)


def _meant(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}" if near else ""


def tag_problems(asked: Iterable[str], known: Collection[str], skipped: Iterable[str] = ()) -> list[str]:
    """A line for each tag that does not exist.

    Args:
        asked: of ``--tags``.
        known: the tags of the playbook.
        skipped: of ``--skip-tags``, which may name tags of other playbooks: those that are spelled almost like one of
            this playbook are wrong.
    """
    known = set(known) - SPECIAL_TAGS
    lines = [
        f"--tags {tag}: no task of this playbook has that tag{_meant(_nearest(tag, known, 0.6))}; it has "
        f"{', '.join(sorted(known)) or 'none'}"
        for tag in asked
        if tag not in known | SPECIAL_TAGS
    ]
    for tag in skipped:
        if tag not in known | SPECIAL_TAGS and (near := _nearest(tag, known, 0.8)):
            lines.append(f"--skip-tags {tag}: no task of this playbook has that tag{_meant(near)}")
    return lines


def judge_variables(names: Iterable[str], repository: Path, *, typed: bool) -> Judged:
    """Judge the names of variables that a user sets.

    A name with a prefix of the project that the project does not know does nothing. Other names are the user's own,
    unless they are spelled almost like one of ours.

    Args:
        names: of the variables.
        repository: whose roles know variables.
        typed: they were typed after ``-e``, for this project; those of an inventory may be for others as well, and are
            wrong only where they are one of ours but for a letter or two, and else odd.
    """
    options, known = declared(repository / "roles"), mentioned(repository)
    roles = sorted(path.name for path in (repository / "roles").iterdir())
    judged = Judged([], [])
    for name in sorted(names):
        if name in options or name in known or name.startswith(("_", "ansible_")):
            continue
        role = next((role for role in roles if name.startswith(f"{role}_")), "")
        ours = [option for option in options if role and option.startswith(f"{role}_")]
        near = _nearest(name, ours, 0.9) or _nearest(name, {*options, *_common(repository)}, 0.85 if typed else 0.9)
        sure = bool(near)
        if not near and role:  # words were left out, as of training_steps
            words = set(name.split("_"))
            near = [option for option in ours if words <= set(option.split("_"))][:5] or _nearest(name, ours, 0.6)
        line = f"{name} is no variable of this project{_meant(near)}; docs/settings.md has all of them"
        if role and (typed or sure):
            judged.wrong.append(line)
        elif role or near or _misspelled_prefix(name, roles):
            judged.odd.append(line)
    return judged


def _misspelled_prefix(name: str, roles: Iterable[str]) -> bool:
    """Whether a name begins almost as the variables of a role do."""
    parts = name.split("_")
    for role in roles:
        begin = "_".join(parts[: role.count("_") + 1])
        if begin != name and len(role) > 5 and difflib.SequenceMatcher(None, begin, role).ratio() >= 0.8:
            return True
    return False
