"""A folder of concepts: each of its folders holds the pictures of one, and becomes a run of the same name."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "python"))
from standalone import picture_files


def concept_names(source: str) -> list[str]:
    """The concepts of a folder on the control node, sorted; none where there is no such folder."""
    if not source or not Path(source).is_dir():
        return []
    return sorted(path.name for path in Path(source).iterdir() if path.is_dir() and not path.name.startswith("."))


def concept_runs(runs: Sequence[Any], concepts: Iterable[str], method: str = "textual_inversion") -> list[Any]:
    """The runs of a call: one for each concept, then those of ``training_runs`` that belong to none.

    Args:
        runs: ``training_runs``; an entry with the name of a concept sets what differs for that one.
        concepts: their names.
        method: how they are learned. LoRA alone learns no token.
    """
    own = {run.get("run_name"): run for run in runs if isinstance(run, Mapping)}
    names = list(concepts)
    made = []
    for name in names:
        differs = own.get(name, {})
        learns_token = differs.get("training_method", method) != "lora"
        token = {"training_placeholder_token": f"<{name}>"} if learns_token else {}
        made.append({"run_name": name, "training_concept": name, **token, **differs})
    return made + [run for run in runs if not isinstance(run, Mapping) or run.get("run_name") not in names]


def concept_rules(source: str, runs: Sequence[Any], pattern: str, rule: str) -> list[dict[str, Any]]:
    """What is wrong with a folder of concepts, as rules of preflight, which do not hold.

    Args:
        source: the folder on the control node; empty: there is none, and nothing is wrong.
        runs: ``training_runs``.
        pattern: that names of runs match.
        rule: the same in words.
    """
    return [
        {"holds": False, "wrong": wrong, "remedy": remedy} for wrong, remedy in _problems(source, runs, pattern, rule)
    ]


def _problems(source: str, runs: Sequence[Any], pattern: str, rule: str) -> Iterable[tuple[str, str]]:
    if not source:
        return
    folder = f"the folder of concepts {source}"
    if not Path(source).is_dir():
        yield f"{folder} does not exist on the control node", "set training_concepts_source to a folder of folders"
        return
    names = concept_names(source)
    if not names:
        yield f"{folder} holds no folder", "put the pictures of each concept into a folder of its own there"
    if stray := _some(path.name for path in Path(source).iterdir() if path.is_file() and path.name[0] != "."):
        yield f"{folder} holds {stray} beside its folders", "move it into the folder of its concept, or away"
    if wrong := _some(name for name in names if not re.match(pattern, name)):
        yield f"{folder} holds {wrong}, which no run can be called", f"use {rule}"
    lower = [name.lower() for name in names]
    if twice := _some(name for name in names if lower.count(name.lower()) > 1):
        yield f"{folder} holds {twice}, which differ only in case", "give each concept a name of its own"
    if empty := _some(name for name in names if not _pictures(Path(source) / name)):
        yield f"{folder} holds no picture in {empty}", "put three to five pictures of the concept there"
    others = [str(run.get("run_name")) for run in runs if isinstance(run, Mapping)]
    if foreign := _some(name for name in others if name not in names):
        yield (
            f"training_runs sets what differs for {foreign}, of which {folder} holds no folder",
            "name a folder that is there, or leave training_concepts_source out",
        )
    for name in names:
        for what, problem in picture_files.problems(Path(source) / name):
            wrong, _, remedy = f"{what} in the picture folder {source}/{name} {problem}".partition("; ")
            yield wrong, remedy or "correct it"


def _pictures(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in picture_files.SUFFIXES]


def _some(names: Iterable[str]) -> str:
    """The first names, sorted, for a message; empty if there are none."""
    found = sorted(names)
    return ", ".join(found[:5]) + (" and more" if len(found) > 5 else "")


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {function.__name__: function for function in (concept_names, concept_runs, concept_rules)}
