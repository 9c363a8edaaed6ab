"""Filters for job files: what ``python/sdtune/settings`` makes of the values of Ansible's variables, and of prompts."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars

sys.path.append(str(Path(__file__).resolve().parents[2] / "python"))
from sdtune.errors import BadInput
from sdtune.files import read_text
from sdtune.settings.ansible import job_data
from sdtune.settings.problems import role_values, setting_rules, setting_variables


def prompts_of_file(path: str) -> list[str]:
    """The prompts of a file: its lines, without empty ones and those that begin with #.

    Raises:
        BadInput: it cannot be read, or is not encoded in UTF-8.
    """
    lines = [line.strip() for line in read_text(Path(path)).split("\n")]
    return [line for line in lines if line and not line.startswith("#")]


def text_problem(path: str) -> str:
    """Why a file of text on the control node cannot be used; empty if it can."""
    try:
        read_text(Path(path))
    except BadInput as error:
        return str(error)
    return ""


def typed_with_e(names: Iterable[str]) -> list[str]:
    """Those of the variables that ``-e`` sets."""
    return sorted(set(names) & set(load_extra_vars(DataLoader())))  # ansible-core has read them already, and kept them


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {
            "job_data": job_data,
            "prompts_of_file": prompts_of_file,
            "role_values": role_values,
            "setting_rules": setting_rules,
            "setting_variables": setting_variables,
            "text_problem": text_problem,
            "typed_with_e": typed_with_e,
        }
