"""Keep other calls of ansible-playbook from changing the same folder of a host, until this one ends.

The lock is held on the host by a process that ends with the connection of the control node. So a call that crashed,
and a control node that died, hold nothing: at most until ssh's connection is closed, a minute after its last use.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
import time
import uuid
from collections import defaultdict
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

DOCUMENTATION = """
name: hold_lock
short_description: Keep other calls of ansible-playbook from changing the same folder of a host
options:
  file: {description: The lock file on the host., type: path, required: true}
  protects: {description: What it protects - for messages., type: str, required: true}
  python: {description: The host's own Python., type: path, required: true}
  wait: {description: Seconds to wait for another call., type: int, default: 90}
  token: {description: Of the call that holds the lock and now releases it., type: str}
"""
SCRIPT = Path(__file__).resolve().parents[2] / "python/standalone/hold_lock.py"

display = Display()


def started(pid: int) -> str:
    """When a process of this machine started; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def this_call() -> dict:
    """Who holds the lock: this ansible-playbook, of whose workers one runs this."""
    pid = os.getppid()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    since = time.strftime("%H:%M:%S UTC", time.gmtime())
    return {
        "user": getpass.getuser(), "node": socket.gethostname(), "boot": boot, "pid": pid, "started": started(pid),
        "since": since, "token": uuid.uuid4().hex,
    }  # fmt: skip


def is_over(other: dict, own: dict) -> bool:
    """Whether a call was one of this machine and has ended; its connection may live a minute longer, and be ours."""
    return (other.get("node"), other.get("boot")) == (own["node"], own["boot"]) and (
        started(int(other["pid"])) != other["started"]
    )


class ActionModule(ActionBase):
    """The action ``hold_lock``."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("file", "protects", "python", "wait", "token"))

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        """Take the lock, or release it; the result of the first has the ``token`` that the second needs."""
        result = {**super().run(tmp, task_vars), "changed": False}
        asked = self._task.args
        if self._task.check_mode:
            return {**result, "skipped": True}
        if asked.get("token"):
            self._call("release", asked["token"])
            return result
        host = (task_vars or {}).get("inventory_hostname", "the host")
        own, end, said = this_call(), time.monotonic() + float(asked.get("wait", 90)), False
        while True:
            answer = json.loads(self._call("take", json.dumps(own)))
            other = answer["by"]
            if answer["held"]:
                return {**result, "token": own["token"]}
            if is_over(other, own):
                self._call("release", other["token"])
                continue
            who = "{user}@{node}, since {since}, process {pid} there".format_map(defaultdict(lambda: "?", other))
            if time.monotonic() > end:
                raise AnsibleActionFail(
                    f"{host}: another ansible-playbook is changing {asked['protects']} ({who}); "
                    f"type the same when it is done"
                )
            if not said:
                display.display(f"{host}: waiting for another ansible-playbook ({who})")
                said = True
            time.sleep(2)

    def _call(self, command: str, about: str) -> str:
        """Run the host's end; its standard output."""
        argv = [self._task.args["python"], "-", command, self._task.args["file"], about]
        if self._connection.transport == "local":
            argv += ["--watch", str(os.getppid())]
        done = self._low_level_execute_command(shlex.join(argv), in_data=SCRIPT.read_bytes())
        if done["rc"]:
            raise AnsibleActionFail((done["stderr"] or done["stdout"]).strip().split("\n")[-1].removeprefix("error: "))
        return done["stdout"]
