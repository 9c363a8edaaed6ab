"""Write what ansible-doc shows of each filter, from the docstrings and annotations of their functions.

    PYTHON -B filter_docs.py COLLECTION      with a Python that has ansible-core

Ansible reads the documentation of a filter that shares its file with others from ``plugins/filter/NAME.yml``. Nobody
writes these files: ``make collection`` packs them, and a clone has none.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml

_SECTION = re.compile(r"^(Args|Returns|Raises):\n((?:    .*\n?|\n)+)", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\w+): ((?:.|\n(?= ))+)", re.MULTILINE)
_PLAIN = {str: "str", bool: "bool", int: "int", float: "float", Path: "path"}


def ansible_type(annotation: Any) -> dict[str, str]:
    """``type``, and ``elements`` of a list, as Ansible names them; ``raw`` for what it has no name for."""
    if get_origin(annotation) in (Union, UnionType):
        left = [one for one in get_args(annotation) if one is not NoneType]
        return ansible_type(left[0]) if len(left) == 1 else {"type": "raw"}
    kind = get_origin(annotation) or annotation
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if not isinstance(kind, type) or not issubclass(kind, Iterable):
        return {"type": "raw"}
    if issubclass(kind, Mapping):
        return {"type": "dict"}
    if kind is Iterable or issubclass(kind, Collection):
        return {"type": "list", "elements": ansible_type((*get_args(annotation), Any)[0])["type"]}
    return {"type": "raw"}


def _flat(text: str) -> str:
    """A paragraph in one line, in Ansible's markup."""
    text = re.sub(r":\w+:`\.?(.+?)`", r"``\1``", " ".join(text.split()))
    return re.sub(r"``(.+?)``", lambda code: f'"{code[1]}"' if ")" in code[1] else f"V({code[1]})", text)


def documentation(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The content of ``NAME.yml`` for a filter.

    Raises:
        ValueError: the function has no docstring, or lacks an annotation.
    """
    text = inspect.getdoc(function)
    signature = inspect.signature(function, eval_str=True)
    annotations = [each.annotation for each in signature.parameters.values()] + [signature.return_annotation]
    if not text or inspect.Signature.empty in annotations:
        raise ValueError(f"filter {name} lacks a docstring or an annotation")
    sections = {title: inspect.cleandoc(body) for title, body in _SECTION.findall(text)}
    described = dict(_ARGUMENT.findall(sections.get("Args", "")))
    paragraphs = [_flat(paragraph) for paragraph in _SECTION.sub("", text).split("\n\n") if paragraph.strip()]
    options: dict[str, dict[str, Any]] = {}
    for argument in signature.parameters.values():
        option = {"description": _flat(described.get(argument.name, "See the description."))}
        options[argument.name] = {**option, **ansible_type(argument.annotation)}
        if argument.default is inspect.Parameter.empty:
            options[argument.name]["required"] = True
        elif argument.default is not None:
            options[argument.name]["default"] = argument.default
    first, *others = options
    call = f"sdtune.sdtune.{name}" + (f"({', '.join(others)})" if others else "")
    returned = _flat(sections.get("Returns", paragraphs[0]))
    return {
        "DOCUMENTATION": {
            "name": name,
            "short_description": paragraphs[0].rstrip("."),
            "description": paragraphs,
            "author": "sdtune (!UNKNOWN)",
            **({"positional": ", ".join(others)} if others else {}),
            "options": {"_input": options[first], **{other: options[other] for other in others}},
        },
        "EXAMPLES": f'- name: Show it\n  ansible.builtin.debug:\n    msg: "{{{{ {first} | {call} }}}}"\n',
        "RETURN": {"_value": {"description": returned, **ansible_type(signature.return_annotation)}},
    }


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Several lines stay lines."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def main() -> None:
    """Write the files of all filters below the folder of a collection."""
    collection = Path(sys.argv[1]).resolve()
    yaml.SafeDumper.add_representer(str, _text)
    sys.path[:0] = [str(collection), str(collection / "python")]
    for path in sorted(collection.glob("plugins/filter/*.py")):
        for name, function in importlib.import_module(f"plugins.filter.{path.stem}").FilterModule().filters().items():
            text = yaml.safe_dump(documentation(name, function), explicit_start=True, sort_keys=False, width=110)
            path.with_name(f"{name}.yml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
