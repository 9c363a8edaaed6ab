"""What is wrong with the values of Ansible's variables, by their declarations, before any host is asked."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from sdtune.errors import BadInput, shown
from sdtune.settings.ansible import role_settings, typed, variable_default, variable_name
from sdtune.settings.fields import MISSING, Setting, Settings, settings_of
from sdtune.settings.load import convert


def setting_variables(role: str) -> list[str]:
    """Names of the variables that a role declares for jobs."""
    return [name for name, _, _ in role_settings(role)]


def role_values(values: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The section of a job that a role declares, from the values of its variables: {name of the setting: value}."""
    return {setting.name: typed(values[name], setting) for name, setting, _ in role_settings(role) if name in values}


def _problem(name: str, value: Any, setting: Setting) -> str:
    """What is wrong with one value; empty if nothing is."""
    if isinstance(value, str) and value in setting.variable.choices:
        return ""
    try:
        value = typed(value, setting)
        if value is not None or not setting.optional:
            value = convert(value, setting.kind, name)
    except BadInput as error:
        return str(error)
    complaint = setting.complaint(value)
    if not complaint and value and setting.variable.type == "path" and not PurePath(value).is_absolute():
        complaint = f"{shown(value)} is relative, and hosts have no folder that it begins at; write it from / on"
    return f"{name}: {complaint}" if complaint else ""


def _joint_problem(cls: type[Settings], values: Mapping[str, Any]) -> str:
    """What is wrong with values that are right one by one; empty if nothing is."""
    settings = settings_of(cls)
    if any(setting.nested for setting in settings):
        return ""
    given = {
        s.name: convert(value, s.kind, s.key)
        for s in settings
        if variable_name(s, cls) in values and (value := typed(values[variable_name(s, cls)], s)) is not None
        if not (isinstance(value, str) and value in s.variable.choices)
    }
    derived = {s.name: "derived" for s in settings if s.default is MISSING and s.name not in given}
    try:
        cls(**given, **derived)
    except BadInput as error:
        text = str(error)
        for s in settings:
            text = re.sub(rf"^{re.escape(s.key)}\b|(?<![\w.]){re.escape(s.key)}(?=[: ])", variable_name(s, cls), text)
        return text
    return ""


def setting_problems(values: Mapping[str, Any], role: str) -> dict[str, str]:
    """{variable: what is wrong with its value}, of the variables that a role declares for jobs.

    Args:
        values: {variable: value}; a variable that is not there is not judged.
        role: name of the role.
    """
    found: dict[str, str] = {}
    sections: dict[type[Settings], bool] = {}
    for name, setting, cls in role_settings(role):
        problem = _problem(name, values[name], setting) if name in values else ""
        if not problem and name in values and "training_method" in values:
            misplaced = setting.misplaced(typed(values[name], setting), str(values["training_method"]))
            problem = f"{name}: {misplaced}" if misplaced else ""
        sections[cls] = sections.get(cls, True) and not problem
        if problem:
            found[name] = problem
    for cls in (cls for cls, right in sections.items() if right):
        if problem := _joint_problem(cls, values):
            found[problem.partition(":")[0].partition(" ")[0]] = problem
    return found


def setting_rules(values: Mapping[str, Any], role: str, runs: Iterable[Any] = ()) -> list[dict[str, Any]]:
    """The problems as rules of preflight, which do not hold.

    Args:
        values: {variable: value} of the inventory.
        role: name of the role.
        runs: ``training_runs``, whose entries may set variables too.
    """
    defaults = {name: variable_default(setting) for name, setting, _ in role_settings(role)}
    found = dict.fromkeys(setting_problems(values, role).items(), "")
    for run in runs if isinstance(runs, list) else []:
        own = {k: v for k, v in run.items() if k in defaults} if isinstance(run, Mapping) else {}
        for item in setting_problems({**values, **own}, role).items() if own else ():
            found.setdefault(item, f"run {shown(run.get('run_name', ''))}: ")
    return [
        {"holds": False, "wrong": prefix + problem, "remedy": _remedy(name, defaults)}
        for (name, problem), prefix in found.items()
    ]


def _remedy(name: str, defaults: Mapping[str, Any]) -> str:
    default = f", whose default is {shown(defaults[name])}" if name in defaults else ""
    return f"correct {name}{default} (docs/settings.md)"
