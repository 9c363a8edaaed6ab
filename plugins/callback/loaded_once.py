"""Load once what the worker of every task would load again.

ansible-playbook forks a worker for each task on each host. A worker that uses one filter loads all of them, and one
that connects reads the documentation of its connection. What its parent has loaded, a worker has; what its parent's
garbage collector leaves alone, the worker's does not visit, so its memory stays shared.
"""

from __future__ import annotations

DOCUMENTATION = """
name: loaded_once
type: aggregate
short_description: Load once what the worker of every task would load again
description: [A task then takes less time on the control node.]
"""

import gc

from ansible.playbook.play import Play
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import (
    become_loader,
    connection_loader,
    filter_loader,
    lookup_loader,
    shell_loader,
    test_loader,
)

_PLUGINS = {
    filter_loader: ["default"],  # one brings all
    test_loader: ["match"],
    connection_loader: ["ansible.builtin.ssh", "ansible.builtin.local"],
    shell_loader: ["ansible.builtin.sh"],
    become_loader: ["ansible.builtin.sudo"],
    lookup_loader: [f"ansible.builtin.{name}" for name in ("file", "vars", "varnames")],
}


class CallbackModule(CallbackBase):
    """The callback ``loaded_once``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "loaded_once"

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Before the first task of the play; its roles are read by now."""
        for loader, names in _PLUGINS.items():
            for name in names:
                loader.get(name, class_only=True)
        gc.freeze()
