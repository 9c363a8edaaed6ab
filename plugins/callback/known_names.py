"""Refuse tags and variables of the command line that do not exist, before the first task.

Ansible ignores both: ``--tags trainig`` does nothing and ends with exit code 0, and ``-e training_step=5`` trains with
the default. What the inventory sets is judged by the action check_variables, with which each play begins.
"""

from __future__ import annotations

DOCUMENTATION = """
name: known_names
type: aggregate
short_description: Refuse tags and variables of the command line that do not exist
description: [Ansible would ignore them.]
"""

import sys
from pathlib import Path

from ansible import context
from ansible.playbook import Playbook
from ansible.plugins.callback import CallbackBase

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))
from plugins.names import judge_variables, tag_problems

EXIT_CODE = 2  # as of a task that fails


class CallbackModule(CallbackBase):
    """The callback ``known_names``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "known_names"

    def v2_playbook_on_start(self, playbook: Playbook) -> None:
        """End with all problems. Ansible takes any exception of a callback for a warning, but this one."""
        plays = playbook.get_plays()
        names = plays[0].get_variable_manager().extra_vars if plays else ()
        judged = judge_variables(names, REPOSITORY, typed=True)
        for line in judged.odd:
            self._display.warning(line)
        asked, skipped = (
            [tag for tag in context.CLIARGS.get(option) or () if tag != "all"] for option in ("tags", "skip_tags")
        )
        known: set[str] = set()
        if asked or skipped:
            for play in plays:
                known |= {tag for block in play.compile() for tag in _tags(block)}
        problems = [*judged.wrong, *tag_problems(asked, known, skipped)]
        for line in problems:
            self._display.error(f"nothing was done: {line}", wrap_text=False)
        if problems:
            sys.exit(EXIT_CODE)


def _tags(block: object) -> set[str]:
    """The tags of a block, and of all tasks in it."""
    found = set(block.tags)
    for part in ("block", "rescue", "always"):
        for inner in getattr(block, part, ()):
            found |= _tags(inner)
    return found
