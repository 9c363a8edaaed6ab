"""End a call that has lost its lock before its next task, so that two calls never change the same hosts.

The lock of action ``hold_lock`` is renewed by a process beside this call, which says why when it has to give up.
"""

from __future__ import annotations

DOCUMENTATION = """
name: held_lock
type: aggregate
short_description: End a call that has lost its lock before its next task
description: [Two calls would change the same hosts otherwise. A call may hold several locks on each of its hosts.]
"""

import sys
from pathlib import Path

from ansible.executor.task_result import CallbackTaskResult
from ansible.playbook.task import Task
from ansible.plugins.callback import CallbackBase

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))
from plugins import keeper

EXIT_CODE = 2  # as of a task that fails


class CallbackModule(CallbackBase):
    """The callback ``held_lock``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "held_lock"

    def __init__(self) -> None:
        """No locks yet."""
        super().__init__()
        self._keepers: dict[tuple[str, str], tuple[int, str]] = {}  # by host and file of the lock

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Remember the locks that a task took, or that it released them."""
        if result.task.action.rpartition(".")[2] != "hold_lock":
            return
        for one in result.result.get("results", [result.result]):
            if "holder" in one:
                pid, since = one["holder"]["keeper"]
                self._keepers[one["host"], one["file"]] = pid, since
            elif "host" in one:
                del self._keepers[one["host"], one["file"]]

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """End. Ansible takes any exception of a callback for a warning, but this one."""
        for (host, _), process in self._keepers.items():
            if not keeper.is_alive(*process):
                self._display.error(
                    f"{host}: this call holds its lock no longer, so it ends here; type the same again when no other "
                    f"call is changing the hosts",
                    wrap_text=False,
                )
                sys.exit(EXIT_CODE)
