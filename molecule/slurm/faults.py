#!/usr/bin/env python3
"""Inject faults into a batch job in a provisioned lab with Slurm, and print what a user reads. Not in CI.

    ansible-playbook -i inventory/lab-NAME -e @molecule/slurm/vars/run.yml train.yml --tags launch_config
    faults.py NAME [--only FAULT ...]

Prints one line of Markdown for each fault, as in docs/slurm.md. Exit code 1 when any was not handled as expected.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAB = [sys.executable, str(Path(__file__).parents[1] / "lab/lab.py")]
WORK = "/shared/user/sdtune"
RUN = f"{WORK}/runs/faults"
PYTHON = f"{WORK}/env/native/bin/python"
STATE = f"{WORK}/sdtune/python/standalone/run_state.py"
USER = (
    "setpriv",
    "--reuid=user",
    "--regid=user",
    "--init-groups",
    "env",
    "HOME=/shared/user",
    f"PYTHONPATH={WORK}/sdtune/python",
)


SIGNAL_MINUTES = 1  # slurm_signal_seconds of vars/run.yml


def minutes(elapsed: str) -> int:
    """Whole minutes of a time that squeue shows: ``0:41``, ``1:02:03``."""
    *hours, whole, _ = elapsed.split(":")
    return 60 * int(hours[0] if hours else 0) + int(whole)


class Cluster:
    """A login node, node1, and two nodes of a lab."""

    def __init__(self, lab: str) -> None:
        self.lab = lab

    def root(self, host: str, *argv: str, check: bool = True) -> str:
        """Run a command on a host as root."""
        done = subprocess.run(
            [*LAB, "exec", self.lab, host, "--", *argv], capture_output=True, text=True, check=False, cwd="/"
        )
        assert not check or done.returncode == 0, f"{host}: {argv}: {done.stderr}"
        return done.stdout

    def user(self, *argv: str) -> str:
        """Run a command on the login node as the user."""
        return self.root("node1", *USER, *argv)

    def look(self) -> dict[str, Any]:
        """The state of the run, as train.yml and status.yml read it."""
        found: dict[str, Any] = json.loads(self.user(PYTHON, STATE, "look", RUN))
        return found

    def start(self) -> str:
        """Submit the run from step 0; returns the number of its job."""
        self.user(PYTHON, "-P", "-m", "sdtune.launch", "start", RUN, "--overwrite")
        return str(json.loads(self.user("cat", f"{RUN}/slurm.json"))["job"])

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 240) -> dict[str, Any]:
        """Read the state until the condition holds."""
        end = time.monotonic() + seconds
        while not condition(seen := self.look()):
            assert time.monotonic() < end, seen
            time.sleep(1)
        return seen

    def running(self, step: int = 7, attempt: int = 1) -> dict[str, Any]:
        """Wait until the run has made this step, in this attempt."""
        return self.wait_for(
            lambda seen: (
                seen["state"].get("attempt", 0) >= attempt
                and seen["state"]["state"] == "running"
                and seen["progress"].get("step", 0) >= step
            )
        )

    def begin_now(self, job: str) -> None:
        """Spare the test the two minutes for which Slurm holds back a job that it starts again."""
        self.wait_for(lambda seen: seen["state"]["state"] == "pending")
        self.user("scontrol", "update", f"JobId={job}", "StartTime=now")

    def end(self) -> None:
        """Take the job out of the queue, and wait until the nodes are free."""
        self.user("sh", "-c", "scancel --user=user")
        end = time.monotonic() + 60
        while self.user("squeue", "--noheader").strip():
            assert time.monotonic() < end, "the queue does not get empty"
            time.sleep(1)


def failure(seen: dict[str, Any]) -> tuple[str, str]:
    """What the first failed attempt says, and the steps that it lost; a start may meet the lost node again."""
    first = seen["state"]["failures"][0]
    return first["why"], str(first["step"] - first["checkpoint"])


def node_killed(cluster: Cluster) -> tuple[str, str]:
    """slurmd, its step and all ranks of a node end at once; the node comes back later."""
    job = cluster.start()
    cluster.running()
    cluster.root("node3", "sh", "-c", "pkill -KILL -x slurmd; pkill -KILL slurmstepd; pkill -KILL --euid user")
    try:
        cluster.wait_for(lambda seen: seen["state"]["state"] == "pending")
    finally:
        subprocess.run([*LAB, "boot", cluster.lab, "node3"], check=True, capture_output=True)
    cluster.begin_now(job)
    return failure(cluster.running(1, attempt=2))


def cancelled(cluster: Cluster) -> tuple[str, str]:
    """Scancel by the user or an administrator."""
    job = cluster.start()
    cluster.running()
    cluster.user("scancel", job)
    seen = cluster.wait_for(lambda seen: not seen["supervised"])
    assert seen["state"]["state"] == "stopped", seen
    return f"the run was stopped {seen['state']['reason']}", str(
        seen["progress"]["step"] - seen["progress"]["checkpoint"]
    )


def time_limit(cluster: Cluster) -> tuple[str, str]:
    """The time limit comes near."""
    job = cluster.start()
    cluster.running()
    used = cluster.user("squeue", "--noheader", f"--jobs={job}", "--format=%M").strip()
    cluster.user("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes(used) + SIGNAL_MINUTES + 1}")
    seen = cluster.wait_for(
        lambda seen: seen["state"]["state"] == "pending" and bool(seen["progress"].get("step")), 300
    )
    reason = json.loads(cluster.user("cat", f"{RUN}/state.json"))["reason"]
    lost = seen["progress"]["step"] - seen["progress"]["checkpoint"]
    cluster.begin_now(job)
    cluster.running(seen["progress"]["step"] + 1, attempt=2)
    return f"{seen['state']['words']}; {reason}", str(lost)


def drained(cluster: Cluster) -> tuple[str, str]:
    """A node is drained while the job is pending."""
    cluster.root("node1", "scontrol", "update", "NodeName=node3", "State=DRAIN", "Reason=memory")
    try:
        cluster.start()
        seen = cluster.wait_for(lambda seen: seen["state"].get("why") not in (None, "None", "Priority"))
        return seen["state"]["words"], "-"
    finally:
        cluster.root("node1", "scontrol", "update", "NodeName=node3", "State=RESUME")


def held(cluster: Cluster) -> tuple[str, str]:
    """The job is held."""
    cluster.root("node1", "scontrol", "update", "NodeName=node3", "State=DRAIN", "Reason=test")
    try:
        cluster.user("scontrol", "hold", cluster.start())
        return cluster.wait_for(lambda seen: bool(seen["state"].get("never")))["state"]["words"], "-"
    finally:
        cluster.root("node1", "scontrol", "update", "NodeName=node3", "State=RESUME")


def read_only(cluster: Cluster) -> tuple[str, str]:
    """The shared folder becomes read-only on the nodes."""
    cluster.start()
    cluster.running()
    try:
        for host in ("node2", "node3"):
            cluster.root(host, "mount", "--bind", f"{WORK}/runs", f"{WORK}/runs")
            cluster.root(host, "mount", "-o", "remount,bind,ro", f"{WORK}/runs")
        seen = cluster.wait_for(lambda seen: not seen["supervised"])
    finally:
        for host in ("node2", "node3"):
            cluster.root(host, "umount", "--lazy", f"{WORK}/runs", check=False)
    return f"{seen['state']['state']}: {seen['state']['reason']}", "those since the checkpoint"


def controller_restarted(cluster: Cluster) -> tuple[str, str]:
    """The controller ends and is started again."""
    cluster.start()
    before = cluster.running()["progress"]["step"]
    cluster.root("node1", "pkill", "-x", "slurmctld")
    seen = cluster.wait_for(lambda seen: bool(seen["remark"]))
    subprocess.run([*LAB, "boot", cluster.lab, "node1"], check=True, capture_output=True)
    cluster.running(before + 3)
    return re.sub(r"\s+", " ", seen["remark"]), "0"


FAULTS = [held, drained, cancelled, controller_restarted, read_only, node_killed, time_limit]


def main() -> None:
    """Inject the faults, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", help="name of the lab")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="FAULT", choices=[f.__name__ for f in FAULTS], help="by default all"
    )
    options = parser.parse_args()
    cluster, failed = Cluster(options.lab), 0
    for fault in FAULTS:
        if options.only and fault.__name__ not in options.only:
            continue
        cluster.end()
        began = time.monotonic()
        try:
            said, lost = fault(cluster)
        except Exception:  # noqa: BLE001 - the others are tried all the same
            traceback.print_exc()
            failed += 1
            continue
        print(f"| {fault.__doc__.strip().rstrip('.')} | `{said}` | {lost} |", flush=True)
        print(f"{fault.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    cluster.end()
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
