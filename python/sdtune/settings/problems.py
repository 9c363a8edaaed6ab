"""What is wrong with the values of Ansible's variables, by their declarations, before any host is asked."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any

from sdtune.errors import BadInput, shown
from sdtune.settings.ansible import role_settings, typed, variable_default, variable_name
from sdtune.settings.fields import MISSING, Setting, Settings, settings_of
from sdtune.settings.load import convert

METHOD = "training_method"
"""The variable that names the method, which says which settings of others are of no use."""


def setting_variables(role: str) -> list[str]:
    """Names of the variables that a role declares for jobs."""
    return [name for name, _, _ in role_settings(role)]


def role_values(values: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The section of a job that a role declares, from the values of its variables: {name of the setting: value}.

    Settings that the method does not use have their defaults, as in :func:`.job_data`.
    """
    used = _without(values, role, values)
    return {setting.name: typed(used[name], setting) for name, setting, _ in role_settings(role) if name in used}


def _without(values: Mapping[str, Any], role: str, names: Collection[str]) -> dict[str, Any]:
    """``values``, where those of ``names`` that the method does not use have their defaults."""
    method = str(values.get(METHOD, ""))
    unused = {
        name: variable_default(setting)
        for name, setting, _ in role_settings(role)
        if name in names and not setting.is_for(method)
    }
    return {**values, **unused}


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
        if not problem and name in values:
            misplaced = setting.misplaced(typed(values[name], setting), str(values.get(METHOD, "")))
            problem = f"{name}: {misplaced}" if misplaced else ""
        sections[cls] = sections.get(cls, True) and not problem
        if problem:
            found[name] = problem
    for cls in (cls for cls, right in sections.items() if right):
        if problem := _joint_problem(cls, values):
            found[problem.partition(":")[0].partition(" ")[0]] = problem
    return found


def setting_rules(
    values: Mapping[str, Any], role: str, runs: Iterable[Any] = (), typed_names: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The problems as rules of preflight, which do not hold.

    A setting of another method is refused where the inventory, or whoever chooses the method, sets it. Where ``-e`` or
    a run chooses the method, the inventory's values for other methods are passed over: it may serve all methods.

    Args:
        values: {variable: value}, with the method, as the call has them.
        role: name of the role.
        runs: ``training_runs``, whose entries may set variables too.
        typed_names: those of the variables that ``-e`` sets; it wins over the inventory and the runs.
    """
    defaults = {name: variable_default(setting) for name, setting, _ in role_settings(role)}
    entries = [run for run in runs if isinstance(run, Mapping)] if isinstance(runs, list) else []
    chosen_by_runs = any(METHOD in run for run in entries)
    inventory = set(values) - set(typed_names)
    unjudged = set(values) if chosen_by_runs else inventory if METHOD in typed_names else set()
    found = dict.fromkeys(setting_problems(_without(values, role, unjudged), role).items(), "")
    unjudged &= inventory
    for run in entries:
        own = {k: v for k, v in run.items() if k in (*defaults, METHOD) and k not in typed_names}
        mine = _without({**values, **own}, role, unjudged - set(own))
        for item in setting_problems(mine, role).items() if own or chosen_by_runs else ():
            found.setdefault(item, f"run {shown(run.get('run_name', ''))}: ")
    return [
        {"holds": False, "wrong": prefix + problem, "remedy": _remedy(name, defaults)}
        for (name, problem), prefix in found.items()
    ]


def _remedy(name: str, defaults: Mapping[str, Any]) -> str:
    default = f", whose default is {shown(defaults[name])}" if name in defaults else ""
    return f"correct {name}{default} (docs/settings.md)"
