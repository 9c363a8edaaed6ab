"""Keep other calls of ansible-playbook from changing the same folder of a host, until this one ends.

A call that changes several hosts takes the lock of each, one after the other in the order of their addresses. So two
calls that share any host exclude each other, and neither waits for a host that the other took first.

The lock is held for a minute at a time, and a process beside this call renews it (``plugins/keeper.py``). So it lasts
as long as the call, however long nothing is done on that host, and a call that crashed holds nothing: its process
releases the lock within seconds, and where the control node died too, its time runs out.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))
from plugins import host_end, keeper  # noqa: E402

SCRIPT = REPOSITORY / "python/standalone/hold_lock.py"

display = Display()


def this_call() -> dict:
    """Who holds the lock: this ansible-playbook, of whose workers one runs this."""
    pid = os.getppid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:  # not Linux
        boot = ""
    since = time.strftime("%H:%M:%S UTC", time.gmtime())
    return {
        "user": getpass.getuser(), "node": socket.gethostname(), "boot": boot, "pid": pid,
        "started": keeper.started(pid), "since": since, "token": uuid.uuid4().hex,
    }  # fmt: skip


def is_over(other: dict, own: dict) -> bool:
    """Whether a call was one of this machine, which knows all its processes, and has ended."""
    here = own["boot"] and (other.get("node"), other.get("boot")) == (own["node"], own["boot"])
    return bool(here and not keeper.is_alive(int(other["pid"]), other["started"]))


def words(other: dict) -> str:
    """Who holds the lock, for a message."""
    return "{user}@{node}, since {since}, process {pid} there".format_map(defaultdict(lambda: "?", other))


class ActionModule(ActionBase):
    """The action ``hold_lock``."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("protects", "place", "python", "wait", "lease", "take", "holder"))

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        """Take the lock, or release it; the result of the first has the ``holder`` that the second needs.

        Results of both have the ``host`` and the ``file`` there, by which callback held_lock tells locks apart.
        """
        result = {**super().run(tmp, task_vars), "changed": False}
        asked = self._task.args
        if self._task.check_mode:
            return {**result, "skipped": True}
        variables = task_vars or {}
        self._host = str(self._task.delegate_to or variables.get("inventory_hostname", "the host"))
        if asked.get("holder"):
            keeper.end(*asked["holder"]["keeper"])
            self._call("release", asked["holder"])
            return {**result, "host": self._host, "file": asked["holder"]["file"]}
        own = this_call()
        if not boolean(asked.get("take", True)):
            self._wait("look", own)
            return result
        own = self._wait("take", own)
        pid = keeper.start(lambda: self._keep(own))
        holder = {"token": own["token"], "file": own["file"], "keeper": [pid, keeper.started(pid)]}
        return {**result, "holder": holder, "host": self._host, "file": own["file"]}

    def _wait(self, command: str, own: dict) -> dict:
        """Take the lock, or only look, as soon as no other call holds it; the holder, as the host knows it then."""
        asked = self._task.args
        end, said, freed = time.monotonic() + float(asked.get("wait", 90)), False, ""
        while True:
            answer = self._call(command, own)
            other: dict = answer["by"]
            if answer["held"]:
                return other
            if is_over(other, own) and other["token"] != freed:
                self._call("release", other)
                freed = other["token"]
                continue
            if time.monotonic() > end:
                raise AnsibleActionFail(
                    f"{self._host}: another ansible-playbook is changing {asked['protects']} ({words(other)}); "
                    f"type the same when it is done"
                )
            if not said:
                display.display(f"{self._host}: waiting for another ansible-playbook ({words(other)})")
                said = True
            time.sleep(2)

    def _keep(self, own: dict) -> None:
        """Renew the lock while this call lasts, then release it. Runs in a process of its own."""

        def renew() -> str:
            answer = self._call("renew", own)
            by = f" ({words(answer['by'])})" if answer["by"] else ", or was restarted"
            return "" if answer["held"] else f"another call took it{by}"

        lost = keeper.keep((own["pid"], own["started"]), renew, self._lease())
        if lost:
            display.error(
                f"{self._host}: the lock on {self._task.args['protects']} is lost: {lost}; this call ends before its "
                f"next task",
                wrap_text=False,
            )
            return
        display._final_q = None  # what is displayed from now on has no reader
        try:
            self._call("release", own)
        except AnsibleError:
            return  # its time runs out

    def _lease(self) -> float:
        return float(self._task.args.get("lease", 60))

    def _call(self, command: str, who: dict) -> dict:
        """Run the host's end; its answer."""
        asked = self._task.args
        arguments = [command, asked["place"], asked["protects"], json.dumps(who), str(self._lease())]
        answer: dict = json.loads(host_end.call(self, self._host, SCRIPT, arguments, b"", "the lock cannot be used"))
        return answer
