"""The types that roles declare for their variables, and values that people wrote as text.

The declarations are the ``meta/argument_specs.yml`` of all roles; there is no second list.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Option = Mapping[str, Any]
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "path": "a path",
    "list": "a list",
    "dict": "a mapping",
}


class Wrong(ValueError):
    """What is wrong with a value, and what to write: ``is ..., and has to be ...; ...``."""


@functools.cache
def declared(roles: Path) -> dict[str, Option]:
    """``{variable: its option}`` of the argument_specs of all roles below a folder."""
    found: dict[str, Option] = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
            found.update(entry.get("options", {}))
    return found


def _number(text: str, kind: Callable[[str], Any]) -> Any:
    """A number that is written as text; without underscores, which Python allows."""
    if "_" in text:
        raise ValueError(text)
    return kind(text)


def _scalar(value: Any, kind: str) -> Any:
    """``value`` as ``kind``.

    Raises:
        ValueError: it is none.
    """
    text = value.strip() if isinstance(value, str) else None
    if kind == "bool":
        if isinstance(value, bool):
            return value
        if str(value).strip().lower() in _WORDS and not isinstance(value, float):
            return _WORDS[str(value).strip().lower()]
    elif kind == "int":
        if text is not None:
            return _number(text, int)
        if (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and value == int(value)
        ):
            return int(value)
    elif kind == "float":
        if text is not None:
            return _number(text, float)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    elif isinstance(value, str):
        return value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(value)


def _list(value: Any, elements: str) -> list[Any]:
    """``value`` as a list: of YAML's or JSON's spelling, or of numbers with commas between them.

    Raises:
        ValueError: it is none, or one of its elements is wrong.
    """
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError:
                raise ValueError(value) from None
        elif elements in ("int", "float"):
            value = text.split(",") if text else []
        elif "," not in text:  # which of the commas in a text would separate?
            value = [text] if text else []
    if not isinstance(value, list):
        raise ValueError(value)  # noqa: TRY004 - it is caught
    return [item if elements == "dict" and isinstance(item, dict) else _scalar(item, elements) for item in value]


def _mapping(value: Any) -> dict[str, Any]:
    """``value`` as a mapping, also of YAML's or JSON's spelling.

    Raises:
        ValueError: it is none.
    """
    found = yaml.safe_load(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise ValueError(value)  # noqa: TRY004 - it is caught
    return found


def typed(value: Any, option: Option) -> Any:
    """A value in the type that its option declares.

    Text that holds an expression is returned as it is, and so is an empty text where the option's own default is one.

    Args:
        value: as the inventory or ``-e`` has it.
        option: of argument_specs: ``type``, ``elements``, ``default``.

    Raises:
        Wrong: it is not of that type.
    """
    kind, elements = option["type"], option.get("elements", "str")
    if isinstance(value, str) and ("{{" in value or "{%" in value or value == option.get("default", None)):
        return value
    try:
        if kind == "list":
            return _list(value, elements)
        return _mapping(value) if kind == "dict" else _scalar(value, kind)
    except (ValueError, yaml.YAMLError):
        has = "empty" if value is None else f"'{value}'" if isinstance(value, str) else repr(value)
        has += (
            " (YAML reads a bare yes or no as a Boolean)" if isinstance(value, bool) and kind in ("str", "path") else ""
        )
        raise Wrong(f"is {has}, and has to be {_NAMES[kind]}; {_example(kind, elements)}") from None


def _example(kind: str, elements: str) -> str:
    """How to write a value of a type."""
    if kind == "list":
        items = "[1, 2]" if elements in ("int", "float") else '["a", "b"]'
        return f"write it as {items}, with -e as '{{\"NAME\": {items}}}'"
    return {
        "int": "write digits only, such as 5",
        "float": "write it as 0.5 or 5e-3",
        "bool": "write true or false",
        "dict": "write it as {a: 1}",
    }.get(kind, "put quotes around it")


def wrong_types(values: Mapping[str, Any], roles: Path) -> list[str]:
    """A line for each value that is not of its declared type: ``NAME is ..., and has to be ...; what to write``.

    Args:
        values: ``{variable: value}``; what no role declares is not judged.
        roles: folder of the roles.
    """
    lines = []
    for name, option in declared(roles).items():
        if name in values:
            try:
                typed(values[name], option)
            except Wrong as wrong:
                lines.append(f"{name} {str(wrong).replace('NAME', name)}")
    return lines


def unset_variables(names: Iterable[str], known: Iterable[str], sources: Iterable[str]) -> list[str]:
    """A line that names the variables which the inventory has to set and does not; none if it sets all.

    Args:
        names: the variables.
        known: the variables that are set.
        sources: the inventories that were read.
    """
    known = set(known)
    missing = [name for name in names if name not in known]
    if not missing:
        return []
    where = " and ".join(sources) or "the inventory"
    are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
    return [
        f"{', '.join(missing)} {are} not set; set {them} in group_vars/all.yml beside the hosts of {where}, "
        f"as inventory/example/group_vars/all.yml does"
    ]
