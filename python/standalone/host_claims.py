"""What runs have claimed on this host, for all users of it: the port at which ranks meet, and the cores of a run.

A claim is an abstract Unix socket. Its name belongs to one process at a time, whoever its user is; the Linux kernel
releases it when the last process that holds it ends, however that ends. It needs no file, so that no permission and no
cleaning of /tmp matters, and it is valid in one network namespace, as a port is. ``/proc/net/unix`` shows all of them.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pwd
import re
import socket
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

_NAME = "sdtune"
_BEGINS = "begins"
_LIMIT = 107  # bytes of a socket's name, with the zero in front
SHORT = 40  # bytes of a run's name that are shown
_LIST = r"\d{1,5}(?:-\d{1,5})?"
_LABEL = re.compile(rf"run/(\d{{1,10}})/(\d{{1,10}})/([0-9a-f]{{8}})/({_LIST}(?:,{_LIST})*)/([^/]+)", re.ASCII)
"""Claim of a run's cores: a process, its user, the folder of the run, cores, name. Anybody can make one."""


def parse_numbers(text: str) -> list[int]:
    """Numbers of a list such as ``0-3,8``, as the Linux kernel writes cores, and as ports are given.

    Raises:
        ValueError: it is no such list.
    """
    numbers: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def format_numbers(numbers: Iterable[int]) -> str:
    """The inverse of :func:`parse_numbers`, sorted, as short as possible."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def user_name(uid: int) -> str:
    """Name of a user; the number of one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def claim(*what: object) -> socket.socket | None:
    """Claim a name on this host; None if another process has it. The claim lasts as long as the socket is open."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(b"\0" + "/".join(map(str, (_NAME, *what))).encode())
    except OSError:
        held.close()
        return None
    return held


def claimed() -> Iterator[list[str]]:
    """What is claimed on this host: the parts of each name."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.split(maxsplit=7)[7:]
        if path and path[0].startswith(f"@{_NAME}/"):
            yield path[0].split("/")[1:]


def cores_of_parent() -> list[int]:
    """Cores that this host, container or batch job gives to a launch: those of the process that started this rank.

    The rank itself may be bound to a part of them.
    """
    return sorted(os.sched_getaffinity(os.getppid()))


def digest_of(run: str | Path) -> str:
    """What tells run folders of one host apart in claims, whatever their names."""
    return hashlib.sha256(os.path.realpath(run).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def shares() -> list[dict[str, Any]]:
    """The runs that train on this host, of all users.

    Returns:
        ``run``, its name, cut off; ``folder``: see :func:`digest_of`; ``user``; ``pid`` of a rank; ``cores`` as a list
        such as ``0-3``.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for name in claimed():
        label = _LABEL.fullmatch("/".join(name))
        if label is None:  # of something else, or of a program that is none of ours
            continue
        pid, uid, folder, cores, run = label.groups()
        facts = {"run": run, "folder": folder, "user": user_name(int(uid)), "pid": int(pid), "cores": ""}
        one = found.setdefault((pid, folder), facts)
        one["cores"] = format_numbers(parse_numbers(f"{one['cores']},{cores}"))
    return list(found.values())


def in_the_way(others: Iterable[dict[str, Any]], cores: Collection[int]) -> list[dict[str, Any]]:
    """Those of :func:`shares` that have any of the cores."""
    return [one for one in others if not set(parse_numbers(one["cores"])).isdisjoint(cores)]


def describe(others: Iterable[dict[str, Any]]) -> str:
    """Runs with their users, for a message."""
    return ", ".join(f"run {one['run']} of user {one['user']}, on cores {one['cores']}" for one in others)


class CoresTaken(Exception):
    """Another run has some of the cores. The message names it.

    Attributes:
        begins: each of the runs that have them is still beginning, and comes later in their order.
    """

    def __init__(self, message: str, *, begins: bool = False) -> None:
        super().__init__(message)
        self.begins = begins


def _comes_first(order: str, others: Collection[dict[str, Any]]) -> bool:
    """Whether all of these runs are still beginning, with a place in the order after this one."""
    places = {name[1]: name[2] for name in claimed() if name[0] == _BEGINS and len(name) == 3}
    return bool(order and others) and all(order < places.get(str(one["pid"]), "") for one in others)


def _labels(run: str | Path, cores: Iterable[int]) -> Iterator[tuple[object, ...]]:
    """The names of claims that tell which run has these cores: several, where one has no room for the list."""
    name = Path(run).name.encode("utf-8", "replace")[:SHORT].decode("utf-8", "ignore")
    head = ("run", os.getpid(), os.getuid(), digest_of(run))
    room = _LIMIT - len("/".join(map(str, ("\0" + _NAME, *head, "", name))).encode())
    text = ""
    for piece in format_numbers(cores).split(","):
        if text and len(f"{text},{piece}") > room:
            yield (*head, text, name)
            text = ""
        text = f"{text},{piece}" if text else piece
    yield (*head, text, name)


def begin(order: str) -> socket.socket | None:
    """Say that the run of this process is beginning, until the socket is closed: it has not got all of its hosts.

    Args:
        order: see :func:`claim_cores`.
    """
    return claim(_BEGINS, os.getpid(), order)


def claim_cores(run: str | Path, cores: Collection[int], order: str = "") -> list[socket.socket]:
    """Claim cores of this host for a run, all or none.

    Of two that claim at once, one gets its cores: both go from the lowest core up, so the lowest common one decides.
    On several hosts each of two runs may get some. Then that which comes first in the order of all runs waits, and the
    other one is told: see :func:`begin`, which each of them calls before.

    Args:
        run: folder of the run, whose name is for the message that another one gets.
        cores: their numbers.
        order: text that tells the run apart from all others, the same on all of its hosts.

    Returns:
        The claims. They last as long as these are open.

    Raises:
        CoresTaken: another run has some of them.
    """
    mine = os.getpid()
    labels = [claim(*label) for label in _labels(run, cores)]  # before the cores: who finds one taken looks for a label
    held = [label for label in labels if label is not None]
    for core in sorted(cores):
        taken = claim("core", core)
        if taken is None:
            for one in held:
                one.close()
            others = in_the_way([one for one in shares() if one["pid"] != mine], cores)
            first = _comes_first(order, others)
            raise CoresTaken(describe(others) or f"a run that has core {core}", begins=first)
        held.append(taken)
    return held


def can_listen(port: int) -> bool:
    """Whether a program can listen at a port on all addresses. Like the ranks' own, this ignores TIME_WAIT."""
    dual = socket.has_dualstack_ipv6()
    try:
        with socket.create_server(("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual):
            return True
    except OSError:
        return False


def claim_port(ports: Iterable[int]) -> tuple[int, socket.socket] | None:
    """Claim the first port that no other run has claimed and where no program listens; None if there is none."""
    for port in ports:
        held = claim("port", port)
        if held is None:
            continue
        if can_listen(port):
            return port, held
        held.close()
    return None


def listener(port: int) -> str:
    """Name of the user whose program listens at a port; empty if there is none."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return user_name(int(fields[7]))
    return ""


def why_no_port(ports: Collection[int]) -> str:
    """Why none of the ports can be had, with who has the first; empty if one can be had."""
    got = claim_port(ports)
    if got is not None:
        got[1].close()
        return ""
    first = next(iter(ports), 0)
    by = listener(first)
    which = f"port {first} is" if len(ports) == 1 else f"all ports of {format_numbers(ports)} are"
    return f"{which} taken" + (f" ({first} by a program of user {by})" if by else "")


def parser() -> argparse.ArgumentParser:
    """The subcommands."""
    top = argparse.ArgumentParser(prog="host_claims.py", description="What runs have claimed on this host.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "the runs that train on this host, of all users, as JSON"
    command = commands.add_parser("shares", help=text, description=text)
    command.add_argument("own", nargs="*", metavar="RUN", help="run folders: their runs are left out")
    text = "print why no run can meet at one of the ports; nothing when one can be had"
    command = commands.add_parser("port", help=text, description=text)
    command.add_argument("ports", metavar="PORTS", help="as in 29500-29599")
    return top


def main(argv: list[str]) -> None:
    """Do what the command line says."""
    options = parser().parse_args(argv)
    if options.command == "shares":
        own = {digest_of(run) for run in options.own}
        print(json.dumps([one for one in shares() if one["folder"] not in own]))
    elif why := why_no_port(parse_numbers(options.ports)):
        print(why)


if __name__ == "__main__":
    main(sys.argv[1:])
