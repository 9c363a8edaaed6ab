"""``docs/settings.md``: all variables of all roles, from their argument_specs; and the keys of the job files."""

import json
from pathlib import Path
from typing import Any

import yaml

from sdtune.settings.ansible import JOBS, variable_name
from sdtune.settings.fields import sections_of, settings_of
from sdtune.settings.flags import job_flags

INTRODUCTION = """\
# Settings

Written by `make settings` from the roles' `meta/argument_specs.yml`; the settings of a job are declared in
`python/sdtune/settings`. Do not edit this page.

Set a variable in `inventory/<yours>/group_vars/all.yml`, or for one call with `-e run_name=mine`. Variables that
several roles need have no role's prefix, such as `run_name` and `work_dir`; the defaults of role [cluster](#cluster)
refer to them.
"""


def _cell(text: str) -> str:
    """Text for a cell of a table: a bar would end it, an angle bracket would be taken for HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(value: Any) -> str:
    """A value as code in a table's cell."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"


def _meaning(option: dict[str, Any]) -> str:
    """Description and choices."""
    text = option["description"]
    text = _cell(" ".join(text if isinstance(text, list) else [text]))
    if choices := [c for c in option.get("choices", []) if c != ""]:
        text = f"{text.rstrip('.')}. One of {', '.join(_code(c) for c in choices)}."
    return text


def _row(name: str, option: dict[str, Any]) -> str:
    """One variable."""
    kind = f"list of {option['elements']}" if option["type"] == "list" else option["type"]
    default = "required" if option.get("required") else _code(option.get("default"))
    return f"| `{name}` | {kind} | {default} | {_meaning(option)} |"


def _head(*columns: str) -> list[str]:
    """The head of a table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _role(folder: Path) -> list[str]:
    """The section of one role, or nothing for a role without variables."""
    specs = yaml.safe_load((folder / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]["main"]
    options = specs.get("options") or {}
    if not options:
        return []
    rows = [_row(name, option) for name, option in options.items()]
    title = f"{specs['short_description'].rstrip('.')}."
    return ["", f"## {folder.name}", "", title, "", *_head("variable", "type", "default", "meaning"), *rows]


def _job_keys() -> list[str]:
    """The keys of the job files, with the flag and the variable or expression for each."""
    lines = [
        "",
        "## Job files",
        "",
        "The keys of `job.yaml` and `generation.yaml` in a run folder, the flag of `textual_inversion.py` for the same",
        "setting, and the variable or expression that the playbooks take the value from.",
        "",
        *_head("file", "key", "flag", "value in playbooks"),
    ]
    flags = list(job_flags("textual_inversion").values())
    files = {"training": "job.yaml", "generation": "generation.yaml"}
    for kind, job in JOBS.items():
        for cls in sections_of(job):
            for setting in settings_of(cls):
                if setting.variable.in_job and not setting.nested:
                    source = setting.derived or variable_name(setting, cls)
                    flag = f"`--{setting.flag('textual_inversion')}`" if setting in flags else ""
                    lines.append(f"| `{files[kind]}` | `{setting.key}` | {flag} | {_code(source)} |")
    return lines


def reference(repository: Path) -> str:
    """The text of ``docs/settings.md``."""
    lines = [INTRODUCTION.rstrip("\n")]
    for specs in sorted(repository.glob("roles/*/meta/argument_specs.yml")):
        lines += _role(specs.parent.parent)
    return "\n".join([*lines, *_job_keys(), ""])
