"""Launch files that Ansible has staged on every host are put in place by the supervisor, which holds the run's lock."""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from sdtune.errors import BadInput
from sdtune.files import hold_lock, read_text, write_atomically
from sdtune.host.ssh import command_on
from sdtune.launch.run_folder import Run
from standalone import launch_files, run_state


def _place_on(run: Path, call: str, address: str) -> str:
    """Put them in place on another host; returns why that failed, or nothing."""
    command = [sys.executable, "-P", "-m", "sdtune.launch", "place", str(run), call]
    try:
        done = subprocess.run(
            command_on(address, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it did not answer for 60 s"
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"code {done.returncode}")


def check(run: Path, call: str | None, arguments: Sequence[str]) -> None:
    """Refuse a start that would replace what an earlier one has left, before any file of the run changes.

    ``launch.sh`` does the same, but starts when all launch files, the state and the logs of the earlier start are gone.

    Args:
        run: the run folder.
        call: name under which its launch files are staged, if they are.
        arguments: of launch.sh.

    Raises:
        BadInput: with the remedy.
    """
    staged = launch_files.staged(run, call or "")
    path = (staged if staged.is_dir() else run) / "job.yaml"
    try:
        job = yaml.safe_load(read_text(path))
        resumes = job["training"].get("resume_from_checkpoint") is not None
        overwrites = bool(job.get("overwrite"))
    except (BadInput, yaml.YAMLError, AttributeError, KeyError, TypeError):  # launch.sh says what is wrong with it
        resumes = overwrites = False
    Run(run).check_writable(
        overwrite=overwrites or "--overwrite" in arguments,
        resume=resumes or "--resume_from_checkpoint" in arguments,
    )


def choose_hosts(run: Path, call: str | None, names: list[str]) -> None:
    """Of the hosts in the launch files, leave those that the run gets, this one first.

    Args:
        run: the run folder.
        call: name under which its launch files are staged, if they are.
        names: of the hosts.

    Raises:
        BadInput: the launch files know no such host.
    """
    staged = launch_files.staged(run, call or "")
    folder = staged if staged.is_dir() else run
    plan = json.loads((folder / run_state.PLAN).read_text(encoding="utf-8"))
    if unknown := [name for name in names if name not in plan["hosts"]]:
        raise BadInput(f"{run}: its launch files do not know {', '.join(unknown)}, but {', '.join(plan['hosts'])}")
    plan["hosts"] = {name: plan["hosts"][name] for name in names}
    plan["cores"] = {name: cores for name, cores in plan["cores"].items() if name in names}
    nodes = list(plan["hosts"].values()) if len(names) > 1 else ["localhost"]
    write_atomically(folder / run_state.PLAN, json.dumps(plan, indent=4) + "\n")
    write_atomically(folder / "nodefile", "".join(f"{address}\n" for address in nodes))


def place_on_all_hosts(run: Path, call: str) -> None:
    """Put the staged files in place on this host and on the others, if there are any.

    Raises:
        BadInput: a host cannot do it, or the run is going on without a supervisor; with the remedy.
    """
    if not launch_files.staged(run, call).is_dir():
        return
    hosts = json.loads((launch_files.staged(run, call) / "supervisor.json").read_text(encoding="utf-8"))["hosts"]
    others = dict(list(hosts.items())[1:])
    try:
        with hold_lock(run / run_state.LAUNCH_LOCK, timeout=1):
            launch_files.place(run, call)
    except BlockingIOError:
        raise BadInput(f"{run}: this run is going on already, without a supervisor; wait for it") from None
    with ThreadPoolExecutor(max_workers=8) as pool:
        failed = dict(zip(others, pool.map(lambda name: _place_on(run, call, others[name]), others), strict=True))
    problems = [f"{name}: the launch files cannot be put in place: {why}" for name, why in failed.items() if why]
    if problems:
        raise BadInput("; ".join(problems) + "; type ansible-playbook train.yml again")
