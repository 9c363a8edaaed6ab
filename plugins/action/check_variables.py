"""Judge the variables of a host before anything else reads them: whether all are set, known, and of their types.

Looks at the values as they are written: an expression is evaluated where it is used. Nothing is asked of the host.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible import context
from ansible.plugins.action import ActionBase

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))
from plugins.names import judge_variables  # noqa: E402
from plugins.typed import unset_variables, wrong_types  # noqa: E402


class ActionModule(ActionBase):
    """The action ``check_variables``."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("required",))

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        """The result has ``problems``, a line for each; they are no failure."""
        values = task_vars or {}
        sources = context.CLIARGS.get("inventory") or ()
        names = judge_variables(values, REPOSITORY, typed=False)
        problems = [
            *unset_variables(self._task.args["required"], values, sources),
            *wrong_types(values, REPOSITORY / "roles"),
            *names.wrong,
        ]
        return {**super().run(tmp, task_vars), "changed": False, "problems": problems, "warnings": names.odd}
