"""The host's end of an action plugin: a program of ``python/standalone``, run by the host's own Python.

It goes to the host as the standard input of a command, over Ansible's own connection, so nothing has to be installed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

# Runs a program of N bytes that precedes its own standard input.
_LOADER = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv.pop(1))), '-', 'exec'))"


def call(action: ActionBase, host: str, script: Path, arguments: Sequence[str], payload: bytes, wrong: str) -> str:
    """Run a program on the host of a task, whose argument ``python`` names the host's Python.

    Args:
        action: the action plugin of the task.
        host: its name, for messages.
        script: the program, on the control node.
        arguments: of the program.
        payload: its standard input.
        wrong: what it means when the program fails, such as "the folder cannot be filled".

    Returns:
        Its standard output.

    Raises:
        AnsibleActionFail: it failed; the message ends with the last line of its standard error.
        AnsibleConnectionFailure: the connection was lost.
    """
    program = script.read_bytes()
    argv = [action._task.args["python"], "-c", _LOADER, str(len(program)), *arguments]
    done = action._low_level_execute_command(shlex.join(argv), in_data=program + payload)
    why = (done["stderr"] or done["stdout"]).strip().split("\n")[-1]
    if done["rc"] == 255 and not why.startswith("error: "):  # ssh's own
        raise AnsibleConnectionFailure(f"{host}: the connection was lost ({why}); type the same again to go on")
    if done["rc"]:
        raise AnsibleActionFail(f"{host}: {wrong}: {why.removeprefix('error: ')}")
    return done["stdout"]
