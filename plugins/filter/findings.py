"""Filters of role diagnose: what a host answered, as rows.

A row is one check of one host::

    {"host": str, "check": str, "ok": bool, "found": str, "remedy": str, "pair": bool, "with": [str]}

``pair`` says whether the check is about this host and others, so that either may be to blame; ``with`` names those.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

Row = dict[str, Any]

SHOWN = 5  # names in a message
PAIR_CHECKS = ("network", "clock")  # preflight's rules that are about two hosts
REPAIR = "run ansible-playbook provision.yml with the same inventory, which repairs it"
HARDWARE = "if their files are right, memory or processor of one of them computes wrong"
ROUNDING = 0.05  # how far, relatively, a loss on another kind of processor may be off after a few steps
WEIGHTS = (
    "run ansible-playbook provision.yml with the same inventory; it removes them, and the next run makes them again"
)
LIBRARIES = "run ansible-playbook provision.yml --tags gperftools,intel_mpi with the same inventory"
SSH = "run ansible-playbook provision.yml --tags ssh_mesh with the same inventory"
INTERFACE = "over the interface that launch_config_interface names"
PORTS = f"see the other lines; let the hosts reach each other on all TCP ports from 1024 on, {INTERFACE}"
# Of all hosts together: where pairs are wrong, their lines say what to do; where none is, no firewall is in the way.
TOGETHER = (
    "correct the pairs that are wrong; if none is, look at memory and load of these hosts, then run diagnose.yml again"
)


def _row(check: str, ok: bool, found: str, remedy: str = "", **more: Any) -> Row:
    """A row without its host."""
    return {"check": check, "ok": ok, "found": found, "remedy": "" if ok else remedy, "pair": False, **more}


def _split(problem: str) -> tuple[str, str]:
    """What is wrong, and the remedy, of a line of preflight."""
    wrong, _, remedy = problem.partition("; ")
    return wrong, remedy


def unmapped_libraries(preload: Iterable[str], mapped: Iterable[str]) -> list[str]:
    """The libraries of ``preload``, by name, that a process did not map; tcmalloc has two sizes."""
    have = {re.sub(r"(_minimal)?[.].*$", "", PurePath(path).name) for path in mapped}
    names = [re.sub(r"[.]so.*$", "", PurePath(path).name) for path in preload]
    return [name for name in names if name not in have]


def training_steps(trained: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics of each step of the short training, from the output of train.sh."""
    return [json.loads(line) for line in trained.get("stdout_lines", []) if line.startswith("{")]


def seconds_per_step(trained: Mapping[str, Any]) -> float:
    """Seconds of the fastest step after the first, which also converts weights and pictures; 0 if there is none."""
    steps = training_steps(trained)[1:] if trained.get("rc") == 0 else []
    return min((float(step["step_s"]) for step in steps), default=0.0)


def _rule_rows(broken: Iterable[Mapping[str, str]], facts: Mapping[str, Any]) -> list[Row]:
    """What preflight checks: each rule that does not hold, and memory, disk and clock if they are fine."""
    wrong = [
        _row(rule["about"], False, rule["wrong"].strip(), rule["remedy"].strip(), pair=rule["about"] in PAIR_CHECKS)
        for rule in broken
    ]
    fine = [
        _row("memory", True, f"{facts['memory_mb']} MB, {facts['free_mb']} free"),
        _row("disk", True, f"{facts['free_disk_mb']} MB free at {facts['work_dir']}"),
        _row("clock", True, f"within {facts['clock_s']:g} s of the other hosts"),
    ]
    return wrong + [row for row in fine if row["check"] not in {row["check"] for row in wrong}]


def _environment_rows(host: Mapping[str, Any]) -> list[Row]:
    """The Python environment: whole, as pinned, and importable."""
    asked, state = host["asked"], host["environment"]
    wrong = [f"{pin.partition('==')[0]} {problem}" for pin, problem in host["packages"].items()]
    packages = f"not as pinned: {', '.join(wrong[:SHOWN])}" if wrong else f"{len(host['pins'])} as pinned"
    failed = asked["imports_error"] or "; ".join(asked["imports"].values())
    return [
        _row("environment", state[0] == "intact", ": ".join(state), REPAIR),
        _row("packages", not wrong, packages, REPAIR),
        _row("imports", not failed, failed or f"{len(host['modules'])} modules import", REPAIR),
    ]


def _host_rows(host: Mapping[str, Any]) -> list[Row]:
    """What a host with the run user answered about itself."""
    asked = host["asked"]
    missing = ", ".join(asked["libraries"])
    preload = ", ".join(PurePath(path).name for path in host["preload"])
    shape, remedy = _split(host["shape_error"])
    return [
        *_environment_rows(host),
        *(_row(name, not wrong, wrong or "as provisioned", REPAIR) for name, wrong in host["folders"].items()),
        _weights_row(host["weights"]),
        _row("libraries", not missing, f"{missing} cannot be read" if missing else f"{preload} are there", LIBRARIES),
        _row("interface", not shape, shape or f"ranks talk over {host['interface']}", remedy),
        _login_row(asked["logins"]),
    ]


def _weights_row(looked: Mapping[str, Any]) -> Row:
    """The weights that runs have converted, from the result of cached_weights.py: what is wrong, line by line."""
    lines = looked["stdout_lines"] if looked["rc"] == 0 else looked["stderr_lines"][-1:]
    wrong = ", ".join(lines[:SHOWN])
    return _row("weights", not wrong, wrong or "converted weights are as they were written", WEIGHTS)


def _login_row(failed: Mapping[str, Mapping[str, str]]) -> Row:
    """Logins by ssh to every host of the cluster."""
    who = ", ".join(f"{host} ({said['address']}): {said['reason']}" for host, said in failed.items())
    return _row("ssh", not who, f"it cannot log in to {who}" if who else "it logs in to every host", SSH, pair=True)


def _training_rows(trained: Mapping[str, Any], preload: Sequence[str]) -> list[Row]:
    """The short training: whether it ran, and which libraries it mapped."""
    steps = training_steps(trained)
    mapped = [line for line in trained.get("stdout_lines", []) if line.startswith("/")]
    if trained["rc"] == 0 and steps:
        found = f"on this host alone it makes {len(steps)} steps; loss {round(steps[-1]['loss'], 5)}"
    else:
        lines = trained.get("stderr_lines", [])
        reasons = [line for line in lines if line.startswith("error")] + lines[-1:]
        reasons += [trained.get("msg", ""), f"it ended with code {trained['rc']}"]
        found = next(filter(None, reasons))
    without = ", ".join(unmapped_libraries(preload, mapped))
    names = ", ".join(PurePath(path).name for path in mapped)
    return [
        _row("training", trained["rc"] == 0, found, f"correct what it says; {REPAIR}"),
        _row("mapped", not without, f"the training ran without {without}" if without else names, LIBRARIES),
    ]


def step_losses(trained: Mapping[str, Any]) -> list[float]:
    """The loss of each step of the short training; empty where it failed."""
    return [float(step["loss"]) for step in training_steps(trained)] if trained.get("rc") == 0 else []


def _loss_row(
    name: str, own: Sequence[float], losses: Mapping[str, Sequence[float]], processors: Mapping[str, str]
) -> Row:
    """The losses of this host against those of the others, which did the same work.

    Equal processors compute the same bits. Others round differently, so there only a difference counts that no rounding
    explains.
    """
    processor = processors.get(name)
    others = {host: loss for host, loss in losses.items() if host != name and loss}

    def differs(host: str) -> bool:
        tolerance = 0.0 if processors[host] == processor else ROUNDING
        return len(own) != len(others[host]) or any(
            not math.isclose(a, b, rel_tol=tolerance) for a, b in zip(own, others[host], strict=True)
        )

    wrong = [host for host in others if differs(host)]
    if not wrong:
        alike = [host for host in others if processors[host] == processor]
        unlike = [host for host in others if host not in alike]
        text = f"{own[-1]:.6g}" + (f", as on {', '.join(alike)}" if alike else "")
        text += (
            f"; {', '.join(unlike)} {'has' if len(unlike) == 1 else 'have'} another processor, which rounds otherwise"
        )
        return _row("loss", True, text if unlike else text.partition("; ")[0])
    at = f"on {wrong[0]} {others[wrong[0]][-1]:.6g}"
    text = f"the same work gives {own[-1]:.6g} here and {at}" + (
        f" (and differs on {', '.join(wrong[1:])})" if wrong[1:] else ""
    )
    return _row(
        "loss", False, text, f"look at the other lines of both; {REPAIR}; {HARDWARE}", pair=True, **{"with": wrong}
    )


def _speed_row(step: float, fastest: float, factor: float) -> Row:
    """The speed of this host, against that of the fastest one: every step of a run waits for the slowest rank."""
    load = "look what else runs there, and whether the processor is throttled"
    remedy = f"{load}; or raise diagnose_slow_factor for unequal hosts"
    found = f"a step takes {round(step, 3)} s, {round(fastest, 3)} on the fastest host"
    return _row("speed", step <= factor * fastest, found, remedy)


def _mpi_rows(lines: Iterable[str], able: Sequence[str], own: str) -> list[Row]:
    """What hello.sh printed: ``NAME ok WHO`` or ``NAME wrong WHY`` of each other host, and of ``all``."""
    rows = []
    for line in lines:
        name, state, found = line.split(" ", 2)
        every = name == "all"
        text = found if every else f"with {name}: {found}"
        hosts = [host for host in able if host != own] if every else [name]
        check, remedy = ("all-reduce", TOGETHER) if every else ("mpi", PORTS)
        rows.append({**_row(check, state == "ok", text, remedy, pair=True), "with": hosts})
    return rows


def diagnosis_rows(host: Mapping[str, Any]) -> list[Row]:
    """All rows of a host.

    Args:
        host: what was observed, with these keys; of a host that does not answer only the first three are read.
            name; answers: whether it answers Ansible; problem: preflight's line if it does not;
            user, user_exists: the run user;
            broken: rules of preflight that do not hold; facts: memory_mb, free_mb, free_disk_mb, work_dir, clock_s;
            asked: the answer of module diagnose_host; environment: the lines of python_env's inspection;
            packages: ``problems`` of module installed_packages;
            pins, modules, preload: what the environment has to hold, import, and put in front of the ranks;
            folders: {name: what is wrong with it, or empty}; weights: the result of cached_weights.py;
            shape_error, interface: of launch_config;
            trained: the result of train.sh, or empty; fastest: seconds a step on the fastest host; slow_factor;
            losses: {host: loss of each step} and processors: {host: its kind} of the hosts that trained;
            mpi: lines of hello.sh; able: the hosts that took part.
    """
    wrong, remedy = _split(host["problem"])
    rows = [_row("answer", bool(host["answers"]), "it answers Ansible" if host["answers"] else wrong, remedy)]
    if host["answers"]:
        rows += _rule_rows(host["broken"], host["facts"])
        if host["user_exists"]:
            rows += _host_rows(host)
        else:
            missing = f"the user {host['user']} does not exist"
            made = "run ansible-playbook provision.yml with the same inventory, which creates the user"
            rows.append(_row("user", False, missing, made))
        if "rc" in host["trained"]:
            rows += _training_rows(host["trained"], host["preload"])
            if own := step_losses(host["trained"]):
                rows.append(_loss_row(host["name"], own, host["losses"], host["processors"]))
            if step := seconds_per_step(host["trained"]):
                rows.append(_speed_row(step, float(host["fastest"]), float(host["slow_factor"])))
        rows += _mpi_rows(host["mpi"], host["able"], host["name"])
    return [{**row, "host": host["name"]} for row in rows]


def mpi_pairs(able: Sequence[str], addresses: Mapping[str, str], own: str) -> list[str]:
    """``NAME=OWN,ADDRESS`` of each host after this one, as hello.sh takes them: every pair of hosts once."""
    return [f"{host}={addresses[own]},{addresses[host]}" for host in able[able.index(own) + 1 :]] if own in able else []


def failed_logins(
    asked: Mapping[str, Mapping[str, Any]], obstacles: Mapping[str, Sequence[str]], user: str
) -> list[str]:
    """A line for each pair of hosts that ssh does not connect.

    Args:
        asked: ``{host: answer of diagnose_host}``.
        obstacles: ``{host: what login.py found there}``, of hosts that do not let others in.
        user: who has to be let in.
    """

    def line(host: str, other: str, said: Mapping[str, str]) -> str:
        try_it = f"log in to {host} as {user} and type ssh -v {said['address']}"
        remedy = "" if "; " in said["reason"] else "; " + (" | ".join(obstacles.get(other, [])) or try_it)
        return f"{host} -> {other} ({said['address']}): {said['reason']}{remedy}"

    return [
        line(host, other, said) for host, answer in asked.items() for other, said in answer.get("logins", {}).items()
    ]


def hosts_turned_away(asked: Mapping[str, Mapping[str, Any]], host: str) -> list[str]:
    """The hosts that could not log in to ``host``; ``asked`` as in :func:`failed_logins`."""
    return [other for other, answer in asked.items() if host in answer.get("logins", {})]


class FilterModule:
    """Make the functions filters."""

    def filters(self) -> dict[str, Any]:
        """``{name: function}``."""
        return {
            function.__name__: function
            for function in (diagnosis_rows, seconds_per_step, step_losses, mpi_pairs, failed_logins, hosts_turned_away)
        }
