"""End with an error when a play has no hosts.

Ansible skips such a play and ends with exit code 0: after a mistyped ``-i``, without group ``cluster``, or when
``--limit`` leaves none of the play's hosts. Nothing was done then, so that is no success. Tasks of the play cannot say
it, as none runs.
"""

from __future__ import annotations

DOCUMENTATION = """
name: no_hosts
type: aggregate
short_description: End with an error when a play has no hosts
description: [A play without hosts would be skipped, with exit code 0.]
"""

import sys
from collections.abc import Sequence

from ansible import context
from ansible.playbook.play import Play
from ansible.plugins.callback import CallbackBase

EXIT_CODE = 2  # as of a task that fails


def why_no_hosts(pattern: str, sources: Sequence[str], limit: str | None, hosts: Sequence[str]) -> str:
    """What is wrong, and what to do, of a play without hosts.

    Args:
        pattern: the hosts of the play, as its ``hosts:`` names them.
        sources: the inventories that were read.
        limit: the value of ``--limit``.
        hosts: what the pattern names in the inventory without the limit.
    """
    where = " and ".join(sources) or "the inventory"
    if hosts:
        return (
            f"nothing was done: --limit {limit} leaves none of the hosts of group {pattern} ({', '.join(hosts)}); "
            f"name one of them, or leave --limit out"
        )
    return (
        f"nothing was done: {where} has no hosts in group {pattern}; name your inventory with -i, such as "
        f"-i inventory/mine, with the groups of inventory/example/hosts.yml"
    )


class CallbackModule(CallbackBase):
    """The callback ``no_hosts``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "no_hosts"

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Remember the play, for the next event does not tell it."""
        self._play = play

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """End. Ansible takes any exception of a callback for a warning, but this one."""
        pattern = self._play.hosts if isinstance(self._play.hosts, str) else ":".join(self._play.hosts)
        groups = self._play.get_variable_manager().get_vars(play=self._play)["groups"]
        sources, limit = context.CLIARGS.get("inventory") or (), context.CLIARGS.get("subset")
        self._display.error(why_no_hosts(pattern, sources, limit, groups.get(pattern, [])), wrap_text=False)
        sys.exit(EXIT_CODE)
