"""Give the variables that are set with ``-e`` the types that their roles declare.

``-e name=5`` is text to Ansible, whatever the variable is, and nothing in a playbook can replace an extra variable.
This converts each once, before the first task, by the ``meta/argument_specs.yml`` of all roles. What cannot be
converted stays as it is, and role cluster refuses it by name.
"""

from __future__ import annotations

DOCUMENTATION = """
name: typed_variables
type: aggregate
short_description: Give the variables that are set with -e the types that their roles declare
description: [A variable of -e name=value is text to Ansible, whatever it is for.]
"""

import sys
from pathlib import Path

from ansible.playbook.play import Play
from ansible.plugins.callback import CallbackBase

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))
from plugins.typed import Wrong, declared, typed


class CallbackModule(CallbackBase):
    """The callback ``typed_variables``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "typed_variables"

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Convert in place: every later task reads these values."""
        variables = play.get_variable_manager().extra_vars
        for name, option in declared(REPOSITORY / "roles").items():
            if name in variables:
                try:
                    variables[name] = typed(variables[name], option)
                except Wrong:  # refused by role cluster
                    continue
