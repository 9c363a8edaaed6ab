"""The settings as Ansible variables: roles' defaults and argument_specs, and the job file from the variables' values.

Ansible variables cannot be None: ``0``, ``auto`` or empty text stands for no value (:attr:`.Setting.unset`).
"""

import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from sdtune.settings.fields import MISSING, SAME, ZERO_COUNTS, Setting, Settings, sections_of, settings_of
from sdtune.settings.generation import GenerationJob
from sdtune.settings.job import Job

JOBS: dict[str, type[Settings]] = {"training": Job, "generation": GenerationJob}
"""Kinds of job files."""
WIDTH = 140
"""Longest line of a generated YAML file."""
_TYPES = {bool: "bool", int: "int", float: "float", str: "str", list: "list"}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


# --- the job file ----------------------------------------------------------------------------------------------------


def _typed(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``, where it is text for one (``-e name=5``); any other value is returned unchanged."""
    if typing.get_origin(kind) is list and isinstance(value, list):
        return [_typed(item, typing.get_args(kind)[0]) for item in value]
    if kind is bool and isinstance(value, str):
        return _WORDS.get(value.strip().lower(), value)
    if kind is bool and value in (0, 1):
        return bool(value)
    if (kind in (int, float) and isinstance(value, str)) or (kind is float and type(value) is int):
        try:
            return kind(value)
        except (ValueError, OverflowError):
            return value
    if kind is str and type(value) is int:
        return str(value)  # a name such as 42, without quotes
    return value


def typed(value: Any, setting: Setting) -> Any:
    """The value of a variable as its setting has it in a job: what stands for no value is None for an optional one."""
    value = _typed(value, setting.kind)
    return None if setting.optional and value in (setting.unset, "") and not isinstance(value, bool) else value


def job_data(values: Mapping[str, Any], kind: str = "training") -> dict[str, Any]:
    """The content of a job file, from the values of Ansible's variables.

    Args:
        values: the map of variables that :func:`job_variables` generates, after templating.
        kind: a key of :data:`JOBS`.

    Returns:
        The same mapping in the order of the declarations. Text for a number or a Boolean is converted; what stands for
        no value becomes None for optional settings; settings that the job's method does not use have their defaults
        (:func:`.setting_rules` says which of those are refused). A wrong value is left unchanged: the program that
        reads the file refuses it by name.
    """
    return _section_data(values, JOBS[kind], str(values.get("method", "")))


def _section_data(values: Mapping[str, Any], cls: type[Settings], method: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for setting in settings_of(cls):
        if setting.name not in values:
            continue
        value = values[setting.name]
        if setting.nested:
            data[setting.name] = _section_data(value, setting.nested, method)
        else:
            data[setting.name] = typed(value, setting) if setting.is_for(method) else setting.default
    return data


def job_variables(cls: type[Settings]) -> dict[str, Any]:
    """The job's structure with a Jinja expression for each value."""
    return {
        setting.name: job_variables(setting.nested)
        if setting.nested
        else f"{{{{ {setting.derived or setting.variable.value or variable_name(setting, cls)} }}}}"
        for setting in settings_of(cls)
        if setting.variable.in_job
    }


# --- the variables of roles ------------------------------------------------------------------------------------------


def variable_name(setting: Setting, cls: type[Settings]) -> str:
    """Name of the variable that an inventory sets."""
    return setting.variable.name or cls.prefix + setting.name


def role_settings(role: str) -> Iterator[tuple[str, Setting, type[Settings]]]:
    """The variables that a role declares for jobs, each with its setting and section."""
    for job in JOBS.values():
        for cls in sections_of(job):
            for setting in settings_of(cls):
                if cls.role == role and setting.derived is None and not setting.nested:
                    yield variable_name(setting, cls), setting, cls


def variable_default(setting: Setting) -> Any:
    """Default of the variable.

    Raises:
        ValueError: the declaration has neither a default nor ``Derived``.
    """
    default = setting.default if setting.variable.default is SAME else setting.variable.default
    if default is MISSING:
        raise ValueError(f"{setting.key} has no default for its role; give one, or derive it")
    return setting.unset if default is None else default


def variable_meaning(setting: Setting) -> str:
    """Meaning of the variable."""
    meaning = setting.described(str(setting.unset) or "Empty").replace("``", "")
    return f"{meaning} {setting.variable.meaning}".strip()


def _scalar(value: Any) -> str:
    """``value`` on one line of YAML; text has quotes only where it needs them."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(f"k: {value}") == {"k": value}:
                return value
        except yaml.YAMLError:
            pass
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(json.dumps(v, ensure_ascii=False) for v in value)}]"
    return yaml.safe_dump(value).splitlines()[0]


def _default(name: str, setting: Setting, indent: str = "") -> list[str]:
    """``name: default``; a list that is too long for a line has one for each item."""
    default = variable_default(setting)
    line = f"{indent}{name}: {_scalar(default)}"
    if not isinstance(default, list) or len(line) <= WIDTH:
        return [line]
    return [f"{indent}{name}:", *(f"{indent}  - {_scalar(item)}" for item in default)]


def role_defaults(role: str) -> list[str]:
    """Lines of ``defaults/main.yml``: each variable below its meaning, under the title of its section."""
    lines: list[str] = []
    title = None
    for name, setting, cls in role_settings(role):
        if cls is not title:
            lines += [*([""] if title else []), f"# --- {(cls.__doc__ or '').rstrip('.')}"]
            title = cls
        lines += textwrap.wrap(variable_meaning(setting), WIDTH - 2, initial_indent="# ", subsequent_indent="# ")
        choices = setting.variable.choices + setting.choices
        if choices:
            lines.append(f"# One of {', '.join(choices)}.")
        lines += _default(name, setting)
    return lines


def _item(key: str, value: str, indent: str) -> list[str]:
    """``key: value``; text that is too long for a line, or needs quotes, is folded."""
    line = f"{indent}{key}: {_scalar(value)}"
    if _scalar(value) == value and len(line) <= WIDTH:
        return [line]
    return [f"{indent}{key}: >-", *(f"{indent}  {part}" for part in textwrap.wrap(value, WIDTH - len(indent) - 2))]


def role_options(role: str) -> list[str]:
    """Lines below ``options:`` of ``meta/argument_specs.yml``, indented as they stand there."""
    indent = " " * 6
    lines: list[str] = []
    for name, setting, _ in role_settings(role):
        kind = str if setting.choices else typing.get_origin(setting.kind) or setting.kind
        choices = ("",) * (setting.optional and bool(setting.choices)) + setting.variable.choices + setting.choices
        # :mod:`.problems` checks the value itself
        declared = "str" if setting.unset == ZERO_COUNTS else _TYPES[kind]
        lines += [f"{indent}{name}:", f"{indent}  type: {setting.variable.type or declared}"]
        if kind is list:
            lines.append(f"{indent}  elements: {_TYPES[typing.get_args(setting.kind)[0]]}")
        lines += _default("default", setting, f"{indent}  ")
        if choices:
            lines += [f"{indent}  choices:", *(f"{indent}    - {_scalar(choice)}" for choice in choices)]
        lines += _item("description", variable_meaning(setting), f"{indent}  ")
    return lines


def role_map(variable: str, kind: str) -> list[str]:
    """Lines of ``vars/main.yml``: the map that the filter ``job_data`` is applied to."""

    def nested(mapping: dict[str, Any], indent: str) -> Iterator[str]:
        for name, value in mapping.items():
            if isinstance(value, dict):
                yield f"{indent}{name}:"
                yield from nested(value, indent + "  ")
            else:
                yield f'{indent}{name}: "{value}"'

    return [f"{variable}:", *nested(job_variables(JOBS[kind]), "  ")]
