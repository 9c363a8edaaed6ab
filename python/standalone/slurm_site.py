"""What Slurm says of its partitions and nodes, and of a job before it is submitted; and what a node is like.

``ask`` runs on the login node and changes nothing. ``probe`` runs on each node of a short job, by ``srun``.

``mark`` writes into ``work_dir`` what a node has to see there.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
_SECONDS = 60  # for a command of Slurm to answer
_LIBRARIES = ("usr/lib64", "usr/lib", "usr/lib/*-linux-gnu", "usr/local/lib*", "opt/slurm/lib*", "usr/lib64/slurm*")


def call(*command: str, text: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and error of a command; 127 where there is none, 124 if it does not answer."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        return 127, "", f"{command[0]}: no such command"
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]} did not answer for {_SECONDS} s"
    return done.returncode, done.stdout, done.stderr


def fields(line: str) -> dict[str, str]:
    """The fields ``Name=value`` of a line of ``scontrol -o``."""
    return dict(re.findall(r"(\w+)=(\S*)", line))


def pmi_library() -> str:
    """Path of Slurm's PMI-2 library on this host; empty if there is none."""
    found = [path for pattern in _LIBRARIES for path in sorted(Path("/").glob(f"{pattern}/libpmi2.so*"))]
    return str(found[0]) if found else ""


def ask(options: list[str]) -> dict[str, Any]:
    """What Slurm says of itself and of a job with these options of ``sbatch``.

    Returns:
        ``missing``: commands that are not there; ``error``: why the controller does not answer; ``partitions``: {name:
        fields of scontrol}; ``nodes``: the same of the nodes; ``refusal``: why it would not take the job, empty if it
        would; ``start``: when the job would start, as Slurm says it; ``pmi``.
    """
    answer: dict[str, Any] = {"missing": [name for name in COMMANDS if shutil.which(name) is None]}
    answer.update(error="", partitions={}, nodes={}, refusal="", start="", pmi=pmi_library())
    if answer["missing"]:
        return answer
    for what, kind, name in (("partitions", "partition", "PartitionName"), ("nodes", "node", "NodeName")):
        code, output, error = call("scontrol", "-o", "show", kind)
        if code:
            answer["error"] = (error or output).strip().split("\n")[-1]
            return answer
        answer[what] = {found[name]: found for found in map(fields, output.splitlines()) if name in found}
    code, _, error = call("sbatch", "--test-only", *options, text="#!/bin/sh\ntrue\n")
    said = [re.sub("^(sbatch: )?(error: )?", "", line) for line in error.splitlines() if line.strip()]
    if code:
        answer["refusal"] = said[-1] if said else f"sbatch ended with code {code}"
    else:
        answer["start"] = said[-1] if said else ""
    return answer


def write_mark(folder: Path) -> dict[str, str]:
    """Write a file that the nodes have to see, in a folder or the nearest of its parents that exists.

    Returns:
        ``path`` and ``text`` of the file.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.is_dir())
    text = secrets.token_hex(8)
    path = nearest / f".sdtune-mark-{text}"
    path.write_text(text, encoding="utf-8")
    return {"path": str(path), "text": text}


def probe(mark: Path, needed: list[str]) -> dict[str, Any]:
    """What this node is like.

    Args:
        mark: a file that the login node has written into ``work_dir``.
        needed: files that a rank needs.

    Returns:
        ``node``, ``flags`` of its processor that matter, ``model``, ``mark``: what it reads there, empty if nothing;
        ``writable``: whether it can write there; ``cores`` that a process may use; ``missing``: of ``needed``.
    """
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    known = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in information.splitlines())
    }
    flags = set(known.get("flags", "").split())
    try:
        text = mark.read_text(encoding="utf-8")
    except OSError:
        text = ""
    return {
        "node": os.uname().nodename,
        "model": known.get("model name", ""),
        "flags": sorted(flags & {"avx2", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16"}),
        "mark": text,
        "writable": os.access(mark.parent, os.W_OK | os.X_OK),
        "cores": len(os.sched_getaffinity(0)),
        "missing": [path for path in needed if not os.access(path, os.R_OK)],
    }


def main(argv: list[str]) -> None:
    """Do what the command line says; answers are JSON."""
    parser = argparse.ArgumentParser(prog="slurm_site.py", description="What Slurm says, and what its nodes are like.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "what Slurm says of itself, and of a job with these options of sbatch"
    asking = commands.add_parser("ask", help=text, description=text)
    asking.add_argument("options", nargs="*", metavar="OPTION", help="after --")
    text = "write a file that the nodes have to see, and print its path and its text"
    commands.add_parser("mark", help=text, description=text).add_argument("folder", type=Path, metavar="FOLDER")
    text = "what this node is like"
    probing = commands.add_parser("probe", help=text, description=text)
    probing.add_argument("mark", type=Path, metavar="MARK", help="file that the login node has written")
    probing.add_argument("needed", nargs="*", metavar="FILE", help="files that a rank needs")
    options = parser.parse_args(argv)
    if options.command == "ask":
        print(json.dumps(ask(options.options)))
    elif options.command == "mark":
        print(json.dumps(write_mark(options.folder)))
    else:
        print(json.dumps(probe(options.mark, options.needed)))


if __name__ == "__main__":
    main(sys.argv[1:])
