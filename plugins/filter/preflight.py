"""Filters of role preflight: rules, their report, and what hosts answered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MEGABYTE = 1024 * 1024
# What ssh or Ansible says of a host that does not answer, as a pattern, and the remedy; the first that matches counts.
REMEDIES = [
    # A cloud image that turns root away by a forced command says whom it lets in.
    ("[Ll]og ?in as the user [\"'\u201c]?(?P<who>[a-z_][a-z0-9_.-]*)", "set ansible_user: {who} in the inventory"),
    (
        "Host key verification failed|IDENTIFICATION HAS CHANGED",
        "if it was reinstalled, type ssh-keygen -R {host} and log in once with ssh; "
        "if not, find out which host answers there",
    ),
    ("Permission denied", "let your key in, with ssh-copy-id {login}, or name another user or key"),
    ("interpreter", "install python3 there as root, or set ansible_python_interpreter"),
    ("", "check ansible_host and the network, then try ansible {name} -m ping with the same inventory"),
]
# The best instruction set that training can use, and what it means for a step.
INSTRUCTION_SETS = [
    ("amx_bf16", "AMX: bf16 at full speed"),
    ("avx512_bf16", "AVX-512 with bf16"),
    ("avx512f", "AVX-512 without bf16 instructions"),
    ("", "AVX2 only: slow, and in float32"),
]


def preflight_rule_names(kind: str, run_tags: Iterable[str], skip_tags: Iterable[str]) -> str:
    """A regular expression that matches the variables with the rules of the roles that will run.

    ``--tags`` of one role selects its rules and preflight's own; ``--skip-tags`` leaves out a role's.

    Args:
        kind: ``inventory`` or ``host``.
        run_tags: ``ansible_run_tags``; it contains ``all`` without ``--tags``.
        skip_tags: ``ansible_skip_tags``.
    """
    run, skip = list(run_tags), "|".join(skip_tags)
    roles = "[a-z][a-z_]*" if "all" in run else "|".join(["preflight", *run])
    without = f"(?!({skip})_{kind}_rules$)" if skip else ""
    return f"^{without}({roles})_{kind}_rules$"


def preflight_broken(rules: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rules that do not hold, as ``about`` (default ``host``), ``wrong``, ``remedy``.

    ``wrong`` and ``remedy`` of a rule that holds are not read: they may refer to what is undefined then.
    """
    return [
        {"about": str(rule.get("about", "host")), "wrong": str(rule["wrong"]), "remedy": str(rule["remedy"])}
        for rule in rules
        if not rule["holds"]
    ]


def preflight_lines(broken: Iterable[Mapping[str, str]]) -> list[str]:
    """One line for each broken rule: ``what is wrong; the remedy``."""
    return [f"{rule['wrong'].strip()}; {rule['remedy'].strip()}" for rule in broken]


def preflight_report(problems: Mapping[str, Iterable[str]]) -> str:
    """Each problem once, after the hosts that have it; empty if there are none. ``problems``: ``{host: [problem]}``."""
    hosts: dict[str, list[str]] = {}
    for host, lines in problems.items():
        for line in dict.fromkeys(lines):
            hosts.setdefault(line, []).append(host)
    return "\n".join(f"{', '.join(names)}: {line}" for line, names in hosts.items())


def preflight_unreachable(message: str, name: str, address: str, user: str = "") -> str:
    """The problem and the remedy of a host that does not answer, from what ssh or Ansible said.

    Args:
        message: the ``msg`` of the failed task.
        name: name of the host in the inventory.
        address: where Ansible looks for it.
        user: ``ansible_user``, if the inventory sets it.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason given"]
    pattern, remedy = next((pattern, remedy) for pattern, remedy in REMEDIES if re.search(pattern, message))
    said = next((line for line in lines if pattern and re.search(pattern, line)), lines[-1])
    found = re.search(pattern, message)
    names = {"host": address, "login": f"{user}@{address}" if user else address, "name": name}
    names.update(found.groupdict() if found else {})
    return f"does not answer Ansible ({re.sub('^.*via ssh: ', '', said)}); {remedy.format(**names)}"


def failure_reason(result: Mapping[str, Any]) -> str:
    """What Ansible and the host itself said of a task that failed: its message, then the output of the host."""
    parts = (result.get(name) for name in ("msg", "module_stdout", "module_stderr"))
    return "\n".join(str(part).strip() for part in parts if part)


def instruction_set(flags: Iterable[str]) -> str:
    """What the processor's flags mean for a training step."""
    known = set(flags)
    return next(words for flag, words in INSTRUCTION_SETS if not flag or flag in known)


def peer_targets(listeners: Mapping[str, str], addresses: Mapping[str, str], own: str) -> list[str]:
    """``NAME=ADDRESS:PORT`` of each other host that listens, as ``peer.py connect`` takes them.

    Args:
        listeners: what ``peer.py listen`` printed on each host; a port, unless it failed.
        addresses: address of each host.
        own: the host that is about to connect.
    """
    return [
        f"{host}={addresses[host]}:{port}" for host, port in listeners.items() if host != own and str(port).isdigit()
    ]


def peers_unreachable(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """The hosts that did not answer ``peer.py connect``, with the reason: ``b (why), c (why)``; empty if all did."""
    return ", ".join(f"{host} ({said['error']})" for host, said in answers.items() if "error" in said)


def peers_losing_packets(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """The hosts with which a few bytes can be exchanged and 64 KB cannot; empty if there are none."""
    return ", ".join(f"{host} ({said['packets']})" for host, said in answers.items() if "packets" in said)


def clock_differences(answers: Mapping[str, Mapping[str, Any]], allowed: float) -> str:
    """The hosts whose clocks differ by more than ``allowed`` seconds: ``12.5 s from b``; empty if there are none."""
    skews = {host: abs(float(said["skew"])) for host, said in answers.items() if "skew" in said}
    return ", ".join(f"{skew:g} s from {host}" for host, skew in skews.items() if skew > float(allowed))


def largest_clock_difference(answers: Mapping[str, Mapping[str, Any]]) -> float:
    """The largest difference to the clock of another host, in seconds; 0 where there is no other host."""
    return max((abs(float(said["skew"])) for said in answers.values() if "skew" in said), default=0)


class FilterModule:
    """Make the functions filters."""

    def filters(self) -> dict[str, Any]:
        """``{name: function}``."""
        return {
            function.__name__: function
            for function in (
                preflight_rule_names,
                preflight_broken,
                preflight_lines,
                preflight_report,
                failure_reason,
                preflight_unreachable,
                instruction_set,
                peer_targets,
                peers_unreachable,
                peers_losing_packets,
                clock_differences,
                largest_clock_difference,
            )
        }
