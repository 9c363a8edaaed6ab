#!/usr/bin/env python3
"""Kill each rank with SIGKILL at random moments of a whole run on two hosts of a provisioned lab.

    kills.py LAB [--inventory DIR] [--kills 30] [--seed 1]

A run goes from the start of rank.sh over joining, loading, validating and training to saving. Each kill has to be
noticed within LIMIT seconds, with rank and host in the message; the run never finishes, and leaves no process.
Prints a table of the kills by phase. Exit code 1 when any was not handled as expected.
"""

import argparse
import json
import random
import sys
import time
import traceback
from pathlib import Path
from statistics import median
from typing import Any

from faults import PYTHON, REPOSITORY, RUN, Cluster

LIMIT = 15.0
# Waits until a time, then for the rank's process, kills it, and prints when, and whether it ran rank.sh or Python.
KILL = """
import os, sys, time
rank, when, end = sys.argv[1].encode(), float(sys.argv[2]), float(sys.argv[3])
time.sleep(max(0, when - time.time()))
def read(pid, name):
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()
def is_rank(pid):
    parent = read(pid, "stat").rpartition(b")")[2].split()[1].decode()
    if b"PMI_RANK=" + rank not in read(pid, "environ").split(b"\\0") or not read(parent, "comm").startswith(b"hydra"):
        return ""
    return "Python" if b"textual_inversion.py" in read(pid, "cmdline") else "rank.sh"
while time.time() < end:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            what = is_rank(pid)
        except OSError:
            continue
        if what:
            os.kill(int(pid), 9)
            print(time.time(), what)
            sys.exit()
"""
SMALL = {"training_max_train_steps": 12, "training_validation_steps": 4, "training_save_as_full_pipeline": True}


def phase_of(cluster: Cluster, what: str, steps: int) -> str:
    """What the run did when its rank was killed, by the last line of its metrics."""
    lines = cluster.execute("node1", "sh", "-c", f"cat {RUN}/metrics.jsonl 2>/dev/null || true").splitlines()
    if not lines:
        return "before Python starts" if what == "rank.sh" else "joining, loading"
    last = json.loads(lines[-1])
    if last["kind"] in ("start", "resume"):
        return "first validation"
    if last.get("step", 0) >= steps:
        return "saving"
    return "first step" if last.get("step", 0) == 0 else "training" if last["kind"] == "step" else "validating"


def start(cluster: Cluster) -> float:
    """Start the run from step 0, without metrics of the run before; returns when."""
    cluster.execute("node1", "rm", "-f", f"{RUN}/metrics.jsonl", f"{RUN}/finished.json", user=True)
    began = time.time()
    cluster.execute("node1", PYTHON, "-P", "-m", "sdtune.launch", "start", RUN, "--overwrite", user=True)
    return began


def kill(cluster: Cluster, rank: int, delay: float) -> tuple[str, float, str] | None:
    """One kill; the phase, after how many seconds it was noticed, and the message. None: the run was faster."""
    host, began = f"node{rank + 1}", start(cluster)
    said = cluster.execute(host, PYTHON, "-c", KILL, str(rank), str(began + delay), str(began + delay + 60))
    seen = cluster.wait_for_end(120)
    if not said or seen["state"]["state"] == "finished":
        return None
    when, what = said.split()
    failures: list[dict[str, Any]] = seen["state"]["failures"]
    noticed = failures[0]["time"] - float(when)
    assert f"rank {rank} on {host}" in failures[0]["why"], failures
    assert seen["state"]["state"] == "failed", seen
    assert not seen["finished"], seen
    assert noticed < LIMIT, (noticed, failures)
    cluster.nothing_left(10, sshd=False)
    return phase_of(cluster, what, SMALL["training_max_train_steps"]), noticed, failures[0]["why"]


def main() -> None:
    """Kill, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", help="name of the lab")
    parser.add_argument("--inventory", type=Path, help="inventory (default: inventory/lab-NAME)")
    parser.add_argument("--kills", type=int, default=30, help="of each rank")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    options = parser.parse_args()
    cluster = Cluster(options.lab, options.inventory or REPOSITORY / "inventory" / f"lab-{options.lab}")
    cluster.prepare(**SMALL)
    began = start(cluster)
    assert cluster.wait_for_end(600)["finished"], "a run that nobody disturbs finishes"
    whole = time.time() - began
    print(f"a whole run takes {whole:.0f} s", flush=True)
    rng, phases, failed, done = random.Random(options.seed), {}, 0, 0
    while done + failed < 2 * options.kills:
        try:
            found = kill(cluster, (done + failed) % 2, rng.uniform(0, whole))
        except AssertionError:
            failed += 1
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            continue
        if found is None:
            continue
        phase, noticed, why = found
        done += 1
        phases.setdefault(phase, []).append(noticed)
        print(f"{done}: {phase}: noticed after {noticed:.1f} s: {why}", flush=True)
    print("| phase | kills | noticed after, median | at most |\n|---|---|---|---|")
    for phase, seconds in phases.items():
        print(f"| {phase} | {len(seconds)} | {median(seconds):.1f} s | {max(seconds):.1f} s |")
    if failed:
        sys.exit(f"{failed} of {done + failed} kills were not handled as expected")


if __name__ == "__main__":
    main()
