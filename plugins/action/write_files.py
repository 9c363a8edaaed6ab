"""Write small text files to a host, all in one call over Ansible's own connection.

``ansible.builtin.template`` asks the host, sends a file and starts a module, for each file: seconds for the launch
files of a run. Here the host's own Python gets all of them, of all runs of a call, on its standard input.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

SCRIPT = Path(__file__).resolve().parents[2] / "python/standalone/write_files.py"
# Runs a program of N bytes that precedes its own standard input.
_LOADER = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv.pop(1))), '-', 'exec'))"


class ActionModule(ActionBase):
    """The action ``write_files``."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("folders", "python", "mode", "folder_mode"))

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        """The result has ``written``: the paths of files and folders that were not as they are now."""
        result = super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname", "the host")
        written = self.write(host)
        return {**result, "written": written, "changed": bool(written)}

    def write(self, host: str) -> list[str]:
        """Send the files; in check mode the host only compares them."""
        asked = self._task.args
        request: dict[str, Any] = {name: str(asked[name]) for name in ("mode", "folder_mode")}
        request["folders"] = {str(folder): _described(of) for folder, of in asked["folders"].items()}
        script = SCRIPT.read_bytes()
        argv = [asked["python"], "-c", _LOADER, str(len(script)), *(["--check"] if self._task.check_mode else [])]
        done = self._low_level_execute_command(shlex.join(argv), in_data=script + json.dumps(request).encode())
        why = (done["stderr"] or done["stdout"]).strip().split("\n")[-1]
        if done["rc"] == 255 and not why.startswith("error: "):  # ssh's own
            raise AnsibleConnectionFailure(f"{host}: the connection was lost ({why}); type the same again")
        if done["rc"]:
            place = os.path.commonpath(request["folders"])
            raise AnsibleActionFail(f"{host}: {place} cannot be written: {why.removeprefix('error: ')}")
        return json.loads(done["stdout"])


def _described(folder: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder is to hold, as the host reads it."""
    texts = {kind: dict(folder.get(kind) or {}) for kind in ("files", "scripts")}
    named = {kind: {str(name): _ended(text) for name, text in of.items()} for kind, of in texts.items()}
    return {"above": [str(path) for path in folder.get("above") or []], **named}


def _ended(text: object) -> str:
    """A text that ends with a newline."""
    return str(text) if str(text).endswith("\n") else f"{text}\n"
