#!/usr/bin/python
"""Ask a host several questions at once: its Python environment, libraries, and ssh to other hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: diagnose_host
short_description: What works on a host, and what does not
description:
  - Answers what is asked, for the user that it runs as. Changes nothing. What is wrong is an answer, not a failure.
  - Needs Python 3.9 and its standard library.
options:
  prefix:
    description: Folder of the Python environment.
    type: path
  modules:
    description: Modules that the Python of O(prefix) has to import, by C(sdtune.host.check).
    type: list
    elements: str
    default: []
  environment:
    description: Variables that the modules need to import.
    type: dict
    default: {}
  libraries:
    description: Files that have to be readable.
    type: list
    elements: path
    default: []
  logins:
    description: Hosts that have to let this user in by ssh, with their addresses.
    type: dict
    default: {}
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Log in to both hosts from here
  diagnose_host:
    logins: {node1: 198.51.100.1, node2: 198.51.100.2}
  register: __example_asked
"""

RETURN = r"""
imports:
  description: The modules that do not import, with the reason.
  type: dict
  returned: if asked
imports_error:
  description: Why that cannot be tried; else empty.
  type: str
  returned: if asked
libraries:
  description: The files that cannot be read.
  type: list
  elements: str
  returned: always
logins:
  description: The hosts that do not let this user in, or print more than was asked for, with C(address) and C(reason).
  type: dict
  returned: always
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

GREETING = "sdtune"
AT_ONCE = 4  # logins of this host
PAUSES = (1, 2, 4, 0)  # seconds after a login that was dropped; each host waits up to twice as long
# What ssh says when sshd ends a connection before anybody has logged in; the second is of OpenSSH before 8.2.
DROPPED = re.compile(
    r"kex_exchange_identification|ssh_exchange_identification|Connection (closed|reset) by .* port|Exceeded MaxStartups"
)
LOGIN_SECONDS = 60  # for a login and one command; ssh's own limit is about connecting only
IMPORT_SECONDS = 600  # on a cold network file system
HARMLESS = re.compile(r"ERROR: ld\.so: .* ignored\.$")  # of a missing library that /etc/environment preloads
SSH = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]


def last_line(text: str, otherwise: str = "") -> str:
    """The last line that says something."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line and not HARMLESS.search(line)), otherwise)


def run(
    argv: list[str], seconds: float, late: str, environment: dict[str, str] | None = None
) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of a command.

    Without a code, standard error is why: it cannot be started; or ``late``, after so many ``seconds``, at which it was
    killed with all that it has started.
    """
    try:
        process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return None, "", f"{error.filename or argv[0]}: {error.strerror}"
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None, "", late
    return process.returncode, out, err


def try_imports(prefix: str, modules: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """``imports`` and ``imports_error`` of the environment; ``environment`` is added to the variables."""
    check = ["-I", "-m", "sdtune.host.check", "--json", "--require", ",".join(modules)]
    late = f"it does not end within {IMPORT_SECONDS} s"
    code, out, err = run([f"{prefix}/bin/python", *check], IMPORT_SECONDS, late, {**os.environ, **environment})
    if code == 0:
        return {"imports": {}, "imports_error": ""}
    try:
        failed = dict(json.loads(last_line(out))["failed"])
    except (ValueError, KeyError, TypeError):
        failed = {}
    return {"imports": failed, "imports_error": "" if failed else last_line(err, f"it ended with code {code}")}


def unreadable(paths: list[str]) -> list[str]:
    """The paths that this user cannot read; a link counts as what it leads to."""
    return [path for path in paths if not os.access(path, os.R_OK)]


def login_problem(code: int, out: str, err: str) -> str:
    """What is wrong with a login that was to print :data:`GREETING` and nothing else; empty where nothing is.

    rsync and MPI read what a command prints, so a shell that prints something of its own breaks both.
    """
    if code != 0:
        return last_line(err) or last_line(out, f"the login ended with code {code} and printed nothing")
    more = [line for line in out.splitlines() if line.strip() and line != GREETING]
    if more or GREETING not in out.splitlines():
        wrong = f"the shell there prints {more[0]!r}" if more else "the shell there does not run commands"
        return (
            f"{wrong} where it runs a command, which breaks rsync and MPI; let its start files, such "
            f"as ~/.bashrc or /etc/profile.d, print only where the shell is interactive"
        )
    return ""


def log_in(address: str) -> str:
    """Why a login fails; empty where it does not.

    sshd drops logins at random once ten of all hosts have not authenticated yet (MaxStartups), so such a login is tried
    again a little later.
    """
    argv = [*SSH, address, f"echo {GREETING}"]
    late = (
        f"the login does not end within {LOGIN_SECONDS} s, so the login shell there hangs; see its start files, such "
        f"as ~/.bashrc or /etc/profile.d"
    )
    for pause in PAUSES:
        code, out, err = run(argv, LOGIN_SECONDS, late)
        problem = login_problem(code if code is not None else 255, out, err)
        if code != 255 or not DROPPED.search(err):
            return problem
        time.sleep(pause * (1 + random.random()))  # so that hosts do not meet again
    return (
        f"sshd there dropped {len(PAUSES)} connections before it asked who logs in ({problem}), most likely since too "
        f"many hosts log in at once; raise MaxStartups in /etc/ssh/sshd_config there, such as to 100:30:200, and "
        f"reload sshd"
    )


def failed_logins(addresses: dict[str, str]) -> dict[str, dict[str, str]]:
    """Log in to all hosts, some at a time and in any order, as all hosts do so at once.

    Returns:
        address and reason of those that refuse.
    """
    hosts = random.sample(list(addresses), len(addresses))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        problems = dict(zip(hosts, pool.map(log_in, (addresses[host] for host in hosts))))
    return {host: {"address": addresses[host], "reason": problems[host]} for host in addresses if problems[host]}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "path"},
            "modules": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "libraries": {"type": "list", "elements": "path", "default": []},
            "logins": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    asked = module.params
    answer: dict[str, Any] = {"libraries": unreadable(asked["libraries"])}
    if asked["prefix"] and asked["modules"]:
        answer.update(try_imports(asked["prefix"], asked["modules"], asked["environment"]))
    answer["logins"] = failed_logins(asked["logins"])
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
