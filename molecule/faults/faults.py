#!/usr/bin/env python3
"""Inject faults into a run on the hosts of a provisioned lab, and measure what happens.

    faults.py LAB [--inventory DIR] [--all] [--only NAME ...]

Prints one line of Markdown for each fault, as in docs/reliability.md. Exit code 1 when any was not handled as expected.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
LAB = [sys.executable, str(REPOSITORY / "molecule/lab/lab.py")]
WORK = "/home/sdtune/sdtune"
RUN = f"{WORK}/runs/faults"
PYTHON = f"{WORK}/env/native/bin/python"
CODE = f"{WORK}/sdtune/python"
PLAN = {"stall_timeout": 60, "start_timeout": 180, "host_timeout": 8, "host_wait": 20, "max_restarts": 0,
        "on_host_loss": "fail"}  # fmt: skip


class Cluster:
    """Two hosts of a lab, node1 the primary."""

    def __init__(self, lab: str, inventory: Path) -> None:
        self.lab, self.inventory = lab, inventory
        self.began = 0.0

    def execute(self, host: str, *argv: str, user: bool = False, check: bool = True) -> str:
        """Run a command on a host, as root or as the user of the run."""
        become = ["setpriv", "--reuid=sdtune", "--regid=sdtune", "--init-groups", "env", "HOME=/home/sdtune"]
        done = subprocess.run(
            [*LAB, "exec", self.lab, host, "--", *(become if user else []), *argv],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{host}: {argv}: {done.stderr}"
        return done.stdout

    def link(self, host: str, to: str) -> None:
        """Set the host's network link ``up`` or ``down``."""
        subprocess.run([*LAB, "link", self.lab, host, to], check=True, capture_output=True)

    def playbook(self, name: str, *args: str, log: Path | None = None, **variables: object) -> subprocess.Popen[str]:
        """Start a playbook in the background, without the OpenVINO export, because no run reaches its end."""
        more = json.dumps({"run_name": "faults", **variables})
        settings = ("-i", self.inventory, "-e", f"@{Path(__file__).parent}/vars/run.yml", "-e", more)
        with log.open("w", encoding="utf-8") if log else contextlib.nullcontext(subprocess.PIPE) as output:
            return subprocess.Popen(
                ["ansible-playbook", *settings, "--skip-tags=openvino_export", *args, name],
                cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
            )  # fmt: skip

    def prepare(self, **settings: object) -> None:
        """Write the files of the run that every case starts, with settings in place of those of vars/run.yml."""
        done = self.playbook("train.yml", "--tags=launch_config", training_overwrite=True, **settings)
        said = done.communicate()[0]
        assert done.returncode == 0, said

    def status(self) -> str:
        """The output of status.yml, in one line."""
        asked = self.playbook("status.yml", ansible_timeout=5)
        said = " ".join(asked.communicate(timeout=120)[0].split())
        assert asked.returncode == 0, said
        return said

    def look(self, wait: float = 0) -> dict[str, Any]:
        """The state of the run on the primary."""
        found: dict[str, Any] = json.loads(
            self.execute("node1", PYTHON, f"{CODE}/standalone/run_state.py", "look", RUN, str(wait), user=True)
        )
        return found

    def start(self, **plan: object) -> None:
        """Start the run from step 0, as train.yml does after it has written the files, and wait for a checkpoint."""
        script = (
            "import json, sys; p, new = sys.argv[1], json.loads(sys.argv[2]); d = json.load(open(p)); d.update(new);"
            "json.dump(d, open(p, 'w'))"
        )
        self.execute("node1", PYTHON, "-c", script, f"{RUN}/supervisor.json", json.dumps(PLAN | plan), user=True)
        self.execute("node1", PYTHON, "-P", "-m", "sdtune.launch", "start", RUN, "--overwrite", user=True)
        self.wait_for_step(7)

    def wait_for_step(self, step: int, attempt: int = 1) -> dict[str, Any]:
        """Wait until the run has made this step, in this attempt or a later one."""

        def there(seen: dict[str, Any]) -> bool:
            assert seen["supervised"], seen["state"]
            return bool(seen["progress"].get("step", 0) >= step and seen["state"]["attempt"] >= attempt)

        return self.wait_for(there, 240)

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """Read the state of the run until the condition holds."""
        end = time.monotonic() + seconds
        while True:
            seen = self.look()
            if condition(seen):
                return seen
            assert time.monotonic() < end, seen
            time.sleep(0.3)

    def wait_for_end(self, seconds: float) -> dict[str, Any]:
        """Wait until the supervisor has ended."""
        return self.wait_for(lambda seen: not seen["supervised"], seconds)

    def rank(self, host: str) -> str:
        """PID of the rank on a host, in the host's own PID namespace."""
        status = json.loads(
            self.execute(host, PYTHON, f"{CODE}/standalone/run_state.py", "host", RUN, "0.01", user=True)
        )
        return str(status["ranks"][0]["pid"])

    def processes(self, host: str, *, sshd: bool = True) -> list[str]:
        """All processes of the run user; with or without the sshd processes of that user's connections."""
        found = self.execute(host, "pgrep", "--euid", "sdtune", "--list-full", check=False).splitlines()
        return [line for line in found if sshd or " sshd: " not in line]

    def nothing_left(self, seconds: float = 5, *, sshd: bool = True) -> float:
        """Seconds until no host has a process of the run user."""
        began = time.monotonic()
        while left := [line for host in ("node1", "node2") for line in self.processes(host, sshd=sshd)]:
            assert time.monotonic() - began < seconds, left
            time.sleep(0.2)
        return time.monotonic() - began

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """Record the time of the fault."""
        yield
        self.began = time.time()

    def row(self, what: str, seen: dict[str, Any], *, lost: str = "", left: str = "nothing") -> str:
        """A line of the table."""
        failures = seen["state"]["failures"]
        why = failures[0]["why"] if failures else seen["state"].get("reason", seen["state"]["state"])
        noticed = f"{failures[0]['time'] - self.began:.1f} s" if failures else "-"
        if not lost and failures:
            lost = str(failures[0]["step"] - failures[0]["checkpoint"])
        return f"| {what} | {why} | {noticed} | {lost or '0'} | {left} |"


def rank_killed(cluster: Cluster) -> str:
    """SIGKILL; the run restarts."""
    cluster.start(max_restarts=1)
    with cluster.fault():
        cluster.execute("node2", "kill", "-KILL", cluster.rank("node2"))
    seen = cluster.wait_for_step(8, attempt=2)
    assert "rank 1 on node2 was killed by signal 9" in seen["state"]["failures"][0]["why"], seen
    return cluster.row("a rank killed (SIGKILL), one restart", seen)


def host_processes_killed(cluster: Cluster) -> str:
    """All processes of the run user on a host, the agent included."""
    cluster.start()
    with cluster.fault():
        cluster.execute("node2", "pkill", "-KILL", "--euid", "sdtune")
    seen = cluster.wait_for_end(60)
    assert "node2" in seen["state"]["reason"], seen
    cluster.nothing_left()
    return cluster.row("all processes of a host killed", seen)


def rank_stopped(cluster: Cluster) -> str:
    """SIGSTOP; to the other ranks this is a hang."""
    cluster.start(stall_timeout=10)
    with cluster.fault():
        cluster.execute("node2", "kill", "-STOP", cluster.rank("node2"))
    seen = cluster.wait_for_end(90)
    assert "rank 1 on node2 is stopped" in seen["state"]["reason"], seen
    cluster.nothing_left()
    return cluster.row("a rank hangs (SIGSTOP)", seen)


def link_down_for_good(cluster: Cluster) -> str:
    """The agents on the host that was cut off end its ranks."""
    cluster.start(max_restarts=1, host_wait=3)
    with cluster.fault():
        cluster.link("node2", "down")
    try:
        seen = cluster.wait_for_end(120)
        assert "node2 has not been heard of" in seen["state"]["failures"][0]["why"], seen
        assert "node2 did not come back" in seen["state"]["reason"], seen
        after = cluster.nothing_left(30, sshd=False)
        status = cluster.status()
        assert "node2 did not come back" in status, status
        assert "node2 does not answer" in status, status
    finally:
        cluster.link("node2", "up")
    left = f"no rank, on the cut host too ({after:.0f} s later); there sshd keeps its end until TCP gives up"
    return cluster.row("network cut for good", seen, left=left)


def link_down_continue(cluster: Cluster) -> str:
    """The run continues without the host."""
    cluster.start(max_restarts=1, host_wait=3, on_host_loss="continue")
    with cluster.fault():
        cluster.link("node2", "down")
    try:
        seen = cluster.wait_for_step(8, attempt=2)
        assert seen["state"]["hosts"] == ["node1"], seen
        assert seen["progress"]["world_size"] == 1, seen
    finally:
        cluster.link("node2", "up")
    return cluster.row("network cut for good, on_host_loss: continue", seen)


def link_down_a_minute(cluster: Cluster) -> str:
    """The run waits for the host, and continues with it."""
    cluster.start(max_restarts=1, host_wait=120)
    with cluster.fault():
        cluster.link("node2", "down")
    time.sleep(60)
    cluster.link("node2", "up")
    seen = cluster.wait_for_step(8, attempt=2)
    assert seen["progress"]["world_size"] == 2, seen
    return cluster.row("network cut for 60 s, one restart", seen)


def disk_full(cluster: Cluster) -> str:
    """On the primary, whose run folder is on a small disk of its own."""
    small = f"cp -a {RUN} /run/faults && mount -t tmpfs -o size=40m /dev/small {RUN} && cp -a /run/faults/. {RUN}"
    cluster.execute("node1", "sh", "-c", f"{small} && chown sdtune: {RUN} && rm -rf /run/faults")
    try:
        cluster.start(max_restarts=1)
        with cluster.fault():
            cluster.execute("node1", "sh", "-c", f"cat /dev/zero > {RUN}/filler 2>/dev/null || true")
        seen = cluster.wait_for_end(120)
        cluster.nothing_left()
        expected = "rank 0 on node1: OSError: [Errno 28] No space left on device"
        assert expected in seen["state"]["failures"][0]["why"], seen
        assert "make room" in seen["state"]["reason"], seen
        checkpoints = cluster.execute("node1", "ls", "-A", f"{RUN}/checkpoints").split()
        assert f"step-{seen['progress']['checkpoint']:06}" in checkpoints, "those from before are there"
    finally:
        cluster.execute("node1", "umount", "--lazy", RUN)
    return cluster.row("disk full during a checkpoint", seen)


def torn_checkpoint(cluster: Cluster) -> str:
    """The newest checkpoint is truncated; the run resumes from the one before."""
    cluster.start(max_restarts=1)
    cluster.wait_for(lambda seen: (seen["progress"]["checkpoint"] or 0) >= 10, 60)
    with cluster.fault():
        script = f"p=$(ls -d {RUN}/checkpoints/step-* | tail -n 1) && truncate -s 100 $p/state.safetensors && echo $p"
        torn = cluster.execute("node1", "sh", "-c", f"kill -KILL {cluster.rank('node1')}; sleep 0.3; {script}")
    seen = cluster.wait_for_step(8, attempt=2)
    said = cluster.execute("node1", "cat", f"{RUN}/logs/launch.log")
    assert f"checkpoint {torn.strip()} is incomplete; skipped" in said, said
    return cluster.row("newest checkpoint torn, rank killed", seen, lost="those since the checkpoint before")


def supervisor_killed(cluster: Cluster) -> str:
    """The job ends with it."""
    cluster.start()
    with cluster.fault():
        cluster.execute("node1", "kill", "-KILL", str(cluster.look()["state"]["pid"]))
    after = cluster.nothing_left(15)
    seen = cluster.look()
    assert seen["lost"], seen
    return (
        f"| the supervisor killed | the supervisor of the run died, and the job with it | {after:.1f} s | - | nothing |"
    )


def control_node_killed(cluster: Cluster) -> str:
    """SIGKILL of ansible-playbook during the run; two more follow the same run at once; stop.yml ends it."""
    first = cluster.playbook("train.yml", training_overwrite=True)
    end = time.monotonic() + 300
    while (seen := cluster.look())["progress"].get("step", 0) < 7 or not seen["supervised"]:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < end, seen
        time.sleep(0.5)
    os.killpg(first.pid, signal.SIGKILL)
    before = cluster.look()
    with tempfile.TemporaryDirectory() as folder:
        two = {
            log: cluster.playbook("train.yml", log=log, training_overwrite=True)
            for log in (Path(folder) / "1", Path(folder) / "2")
        }
        try:
            cluster.wait_for_step(before["progress"]["step"] + 30)
            _two_follow_and_stop_ends_it(cluster, two)
        finally:
            for process in two.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    after = cluster.look()
    assert after["state"]["started"] == before["state"]["started"], "one supervisor all along"
    assert after["state"]["attempt"] == 1
    cluster.nothing_left()
    return (
        "| control node killed (SIGKILL), two train.yml at once, stop.yml | `is going on and is followed`; "
        "`has stopped on request` | - | 0 | nothing |"
    )


def _two_follow_and_stop_ends_it(cluster: Cluster, two: dict[Path, subprocess.Popen[str]]) -> None:
    def text_of(log: Path) -> str:
        return " ".join(log.read_text(encoding="utf-8").split())

    end = time.monotonic() + 300
    while left := [log for log in two if "is going on and is followed" not in text_of(log)]:
        assert time.monotonic() < end, text_of(left[0])
        assert two[left[0]].poll() is None, text_of(left[0])
        time.sleep(0.5)
    status = cluster.status()
    assert "run faults is going on" in status, status
    for host in ("node1", "node2"):
        row = re.search(rf"- {host} +(?P<ranks>\d+) +(?P<cpu>\d+) +(?P<memory>\d+) ", status)
        assert row, status
        assert row["ranks"] == "1", status
        assert int(row["memory"]) > 100, status  # MB
    stop = cluster.playbook("stop.yml")
    said = stop.communicate(timeout=180)[0]
    assert stop.returncode == 0, said
    assert "has stopped on request; go on from step" in " ".join(said.split()), said
    for log, process in two.items():
        assert process.wait(timeout=180) == 2, text_of(log)
        assert "the run was stopped on request" in text_of(log), text_of(log)


# Injected without --all. The others take a minute more each, or differ in a detail only.
QUICK = [control_node_killed, rank_killed, rank_stopped, link_down_for_good, disk_full]
SLOW = [host_processes_killed, link_down_continue, link_down_a_minute, torn_checkpoint, supervisor_killed]


def main() -> None:
    """Inject the faults, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", help="name of a lab whose hosts are provisioned")
    parser.add_argument("--inventory", type=Path, help="of the lab (default inventory/lab-NAME)")
    parser.add_argument("--all", action="store_true", help="the slow cases too")
    parser.add_argument("--only", nargs="*", default=[], help="cases of these names (default: the quick ones)")
    options = parser.parse_args()
    cluster = Cluster(options.lab, options.inventory or REPOSITORY / "inventory" / f"lab-{options.lab}")
    cases = [case for case in QUICK + SLOW if not options.only or case.__name__ in options.only]
    if not options.all and not options.only:
        cases = QUICK
    failed = []
    if cases[:1] != [control_node_killed]:  # whose train.yml writes the files of the run
        cluster.prepare()
    print("| fault | the user reads | noticed after | steps lost | left behind |\n|---|---|---|---|---|")
    for case in cases:
        began = time.monotonic()
        try:
            print(case(cluster), f"<!-- {time.monotonic() - began:.0f} s -->", flush=True)
        except (AssertionError, subprocess.SubprocessError, IndexError, KeyError):
            failed.append(case.__name__)
            print(f"{case.__name__}: {traceback.format_exc()}", file=sys.stderr, flush=True)
        finally:  # the next case starts without any process of the run user
            for host in ("node1", "node2"):
                cluster.execute(host, "pkill", "-KILL", "--euid", "sdtune", check=False)
            cluster.nothing_left(30, sshd=False)
    if failed:
        sys.exit(f"not handled as expected: {', '.join(failed)}")


if __name__ == "__main__":
    main()
