"""Read the state of a run from its folder, and ask it to stop. Reads files, locks and /proc.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input, so it is one
file and imports nothing of sdtune. For the subcommands: ``run_state.py --help``.

Two locks tell whether a run is going on: its supervisor holds ``.supervisor.lock``; mpirun and the ranks hold
``.lock``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RUN = "SDTUNE_RUN"
"""Environment variable of all processes of a run: the absolute path of its folder."""
RANK = "SDTUNE_RANK"
"""Environment variable of the processes of a rank: its number."""

STATE = "state.json"
FINISHED = "finished.json"
STOP = "stop"
COLLECTED = ".collected"
EXPORTED = "openvino"
REPORT = "report.html"
SUPERVISOR_LOCK = ".supervisor.lock"
LAUNCH_LOCK = ".lock"
DRAWING = "drawing.json"
DRAWING_LOCK = ".drawing.lock"
DRAWING_LOG = "logs/drawing.log"
_TAIL = 262_144  # bytes at the end of metrics.jsonl that are read: hundreds of steps
_SILENCE = 120  # seconds without a sign of a supervisor after which it counts as standing still
_STANDSTILL = 5  # seconds for which that has to last before a call that waits for the end returns
_WINDOW = 20  # steps over which the speed is averaged


def is_locked(path: Path) -> bool:
    """Whether a process holds a file lock. The Linux kernel releases it when the last holder ends, however it ends."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _object(text: str | bytes) -> dict[str, Any]:
    """A JSON object; empty where the text is none: a disk or an editor has damaged it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_state(run: Path) -> dict[str, Any]:
    """What the supervisor wrote last; empty when none has written anything."""
    try:
        text = (run / STATE).read_bytes()
    except FileNotFoundError:
        return {}
    return _object(text) or {"state": "unknown", "reason": f"{STATE} is damaged"}


def tail_of(path: Path, size: int = _TAIL) -> list[dict[str, Any]]:
    """The last objects of a file of JSON lines, without a line that was cut off."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start = file.seek(max(0, end - size))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    lines = text.split("\n")
    return [found for line in lines[1 if start else 0 : -1] if (found := _object(line))]


def why_unproven(run: Path) -> str:
    """Why ``finished.json`` does not prove that the run has finished; empty when it does.

    It has to name every rank of one attempt, and what was learned has to have the checksum that it states.
    """
    facts = _object(_read(run / FINISHED))
    if not facts:
        return f"{FINISHED} is missing or damaged"
    if "learned" not in facts or "ranks" not in facts:
        return f"{FINISHED} does not say which ranks finished; an earlier version wrote it"
    try:
        named, expected = sorted(rank["rank"] for rank in facts["ranks"]), list(range(facts["world_size"]))
        learned = {str(name): str(checksum) for name, checksum in facts["learned"].items()}
    except (AttributeError, KeyError, TypeError):
        return f"{FINISHED} is damaged"
    if named != expected:
        return f"{FINISHED} names {len(named)} of {len(expected)} ranks"
    for name, checksum in learned.items():
        try:
            found = hashlib.sha256((run / name).read_bytes()).hexdigest()
        except (OSError, ValueError):
            return f"{name} is missing"
        if found != checksum:
            return f"{name} is not what its ranks learned: it has another checksum"
    return ""


def newest_checkpoint(run: Path) -> int | None:
    """The step of the newest checkpoint."""
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return max(steps, default=None)


def asked_steps(run: Path) -> int | None:
    """``max_train_steps`` of the job, read without a YAML library: launch_config has written the file."""
    try:
        text = (run / "job.yaml").read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    found = re.search(r"^\s*max_train_steps:\s*(\d{1,18})\b", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def progress(run: Path, since: float) -> dict[str, Any]:
    """How far the run is, by its metrics since the Unix time ``since``.

    Returns:
        ``max_steps``, ``checkpoint``; after a step also ``step``, ``loss``, ``step_s``, ``images_per_s`` and ``eta_s``
        (including the time for validations); after a validation ``validation`` with its step and loss.
    """
    lines = [line for line in tail_of(run / "metrics.jsonl") if line.get("time", 0) >= since]
    steps = [line for line in lines if line["kind"] == "step"]
    validations = [line for line in lines if line["kind"] == "validation"]
    max_steps = asked_steps(run)
    found: dict[str, Any] = {"max_steps": max_steps, "checkpoint": newest_checkpoint(run)}
    if validations:
        found["validation"] = {key: validations[-1].get(key) for key in ("step", "loss", "gap_closed")}
    if steps:
        last, window = steps[-1], steps[-_WINDOW:]
        found.update(step=last["step"], loss=last["loss"], world_size=last.get("world_size"))
        found["step_s"] = sum(line["step_s"] for line in window) / len(window)
        found["images_per_s"] = sum(line["images_per_s"] for line in window) / len(window)
        if max_steps is not None:
            elapsed = last["time"] - window[0]["time"]  # wall time: includes validations and checkpoints
            per_step = elapsed / (len(window) - 1) if len(window) > 1 else last["step_s"]
            found["eta_s"] = max(0, max_steps - last["step"]) * per_step
    return found


def standstill(run: Path, state: dict[str, Any]) -> str:
    """Why the supervisor, which holds its lock, does nothing; empty while it works.

    It sets the time of its lock file every second, and every half minute while it ends a job or waits for hosts.
    """
    pid = state.get("pid", 0)
    letter = _cpu_seconds(pid)[1]
    if letter in "Tt":
        return f"its supervisor, process {pid}, is stopped, as by SIGSTOP or a debugger; kill -CONT {pid} continues it"
    try:
        silent = time.time() - (run / SUPERVISOR_LOCK).stat().st_mtime
    except FileNotFoundError:  # deleted since it was seen
        return ""
    if state.get("heartbeat") and silent > _SILENCE:
        return f"its supervisor, process {pid} in state {letter}, has done nothing for {silent:.0f} s"
    return ""


def look(run: Path, wait: float = 0) -> dict[str, Any]:
    """The state of a run.

    Args:
        run: its folder.
        wait: seconds to wait for the end of the run, at most; shorter when its supervisor does nothing.

    Returns:
        ``exists``: there is such a folder; ``left``: if not, processes that work for it all the same;
        ``supervised``: a supervisor is running; ``standstill``: see :func:`standstill`; ``unsupervised``: the run is
        going on without one; ``finished``; ``unproven``: why what its finished.json says is not believed, empty where
        it is or there is none; ``collected``: its results were brought to a control node; ``exported``, ``reported``:
        it has an OpenVINO copy, a report; ``lost``: the supervisor died before the run ended; ``state``: see
        :func:`read_state`; ``progress``: see :func:`progress`; ``now``.
    """
    end = time.monotonic() + wait
    patience = end
    while True:
        supervised = is_locked(run / SUPERVISOR_LOCK)
        unsupervised = not supervised and is_locked(run / LAUNCH_LOCK)
        state = read_state(run)
        still = standstill(run, state) if supervised else ""
        now = time.monotonic()
        if not still:
            patience = now + _STANDSTILL
        if not (supervised or unsupervised) or now >= min(end, patience):
            break
        time.sleep(min(0.2, max(0.0, end - now)))
    exists, unproven = run.is_dir(), why_unproven(run)
    return {
        "exists": exists,
        "left": [] if exists else [p.pid for p in processes_by_run(run.parent).get(run.name, [])],
        "standstill": still,
        "supervised": supervised,
        "unsupervised": unsupervised,
        "finished": (run / FINISHED).exists() and not unproven,
        "unproven": unproven if (run / FINISHED).exists() else "",
        "collected": (run / COLLECTED).exists(),
        "exported": (run / EXPORTED).exists(),
        "reported": (run / REPORT).exists(),
        "lost": not supervised and state.get("state") in ("running", "waiting"),
        "state": state,
        "progress": progress(run, 0 if unsupervised else state.get("attempt_started", 0)),
        "now": time.time(),
    }


def drawing(run: Path, wait: float = 0) -> dict[str, Any]:
    """How far the generation of a run's pictures is.

    Args:
        run: the run folder.
        wait: seconds to wait for its end, at most.

    Returns:
        ``going``; ``state``: what it wrote last, with ``ended`` when all pictures are there; ``log``: its last lines.
    """
    end = time.monotonic() + wait
    while (going := is_locked(run / DRAWING_LOCK)) and time.monotonic() < end:
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
    text = _read(run / DRAWING)
    lines = _read(run / DRAWING_LOG).splitlines()
    return {"going": going, "state": json.loads(text) if text else {}, "log": lines[-20:]}


class Process(NamedTuple):
    """A process of this host."""

    pid: int
    environment: dict[str, str]
    """As it was when the process started its program."""
    command: list[str]


def scan_processes() -> Iterator[Process]:
    """The processes of this host whose environment this user may read."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().decode(errors="surrogateescape").split("\0")
            command = (entry / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        except OSError:  # ended meanwhile, or of another user
            continue
        yield Process(int(entry.name), dict(variable.partition("=")[::2] for variable in environment), command[:-1])


def processes_by_run(runs: Path) -> dict[str, list[Process]]:
    """The processes of this host that work for a run below a folder, its supervisor included, by the run's name."""
    found: dict[str, list[Process]] = {}
    for process in scan_processes():
        run = process.environment.get(RUN)
        if run is None and "sdtune.launch" in process.command and "run" in process.command[:-1]:  # a supervisor
            run = next((word for word in process.command[process.command.index("run") :] if word.startswith("/")), None)
        if run is not None and Path(run).parent == runs:
            found.setdefault(Path(run).name, []).append(process)
    return found


def _read(path: Path | str) -> str:
    """A small text file; empty when it does not exist."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def ranks_of(run: Path) -> dict[int, int]:
    """{rank: pid} of the run's ranks on this host."""
    return {
        int(process.environment[RANK]): process.pid
        for process in processes_by_run(run.parent).get(run.name, [])
        if RANK in process.environment and any(x.endswith("textual_inversion.py") for x in process.command[:-1])
    }


def _cpu_seconds(pid: int) -> tuple[float, str, int]:
    """Processor time of a process, its state letter, its resident bytes; ``(0.0, "X", 0)`` when it has ended."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return 0.0, "X", 0
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), fields[0], int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def _traffic(interface: str) -> int | None:
    """Bytes that a network interface has sent and received."""
    counts = [_read(f"/sys/class/net/{interface}/statistics/{way}_bytes") for way in ("rx", "tx")]
    return sum(map(int, counts)) if interface and all(counts) else None


def _throttled() -> int | None:
    """How often cores were throttled because of their temperature, where the Linux kernel counts it."""
    counts = [
        _read(path) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    ]
    return sum(map(int, filter(None, counts))) if counts else None


def _hottest() -> float | None:
    """The highest temperature of all sensors, in degrees Celsius."""
    zones = [
        *Path("/sys/class/hwmon").glob("hwmon*/temp*_input"),
        *Path("/sys/class/thermal").glob("thermal_zone*/temp"),
    ]
    values = [int(text) / 1000 for text in map(_read, zones) if text.strip().lstrip("-").isdigit()]
    return max(values, default=None)


def _last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def host_status(run: Path, seconds: float) -> dict[str, Any]:
    """What the host and the run's ranks on it do, measured over ``seconds``; changes nothing."""
    interface = re.search(r"^export GLOO_SOCKET_IFNAME=(\S+)", _read(run / "env.sh"), re.MULTILINE)
    name = interface.group(1) if interface else ""
    ranks = ranks_of(run)
    before = {rank: _cpu_seconds(pid)[0] for rank, pid in ranks.items()}
    traffic, began = _traffic(name), time.monotonic()
    time.sleep(seconds)
    spent, moved = time.monotonic() - began, _traffic(name)
    found = []
    for rank, pid in sorted(ranks.items()):
        cpu, state, resident = _cpu_seconds(pid)
        log = _last_line(run / "logs" / f"rank-{rank}.log")
        sick = state in "TtZX" or log.startswith(("error:", "agent:")) or "Error" in log
        share = round(100 * max(0.0, cpu - before[rank]) / spent)
        found.append(
            {"rank": rank, "pid": pid, "state": state, "cpu": share, "memory": resident, "sick": sick, "log": log}
        )
    memory = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    return {
        "ranks": found,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "memory": int(memory["MemTotal"].split()[0]) * 1024,
        "available": int(memory["MemAvailable"].split()[0]) * 1024,
        "interface": name,
        "bytes_per_s": None if traffic is None or moved is None else round((moved - traffic) / spent),
        "temperature": _hottest(),
        "throttled": _throttled(),
        "logs": {path.stem[5:]: _last_line(path) for path in sorted((run / "logs").glob("rank-*.log"))},
        "run": look(run),
        "drawing": drawing(run),
    }


def ask_to_stop(run: Path, within: float) -> None:
    """Request a stop: rank 0 stops after its step; the supervisor ends the run after ``within`` seconds."""
    (run / STOP).write_text(json.dumps({"within": within, "asked": time.time()}) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The subcommands."""
    top = argparse.ArgumentParser(
        prog="run_state.py", description="The state of a run, by its folder; answers are JSON."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, folder: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("folder", type=Path, metavar=folder)
        return added

    wait: dict[str, Any] = {"type": float, "metavar": "SECONDS", "help": "wait for its end, at most so long"}
    command("look", "the state of a run", "RUN").add_argument("seconds", nargs="?", default=0.0, **wait)
    command("drawing", "how far the generation of its pictures is", "RUN").add_argument(
        "seconds", nargs="?", default=0.0, **wait
    )
    command("host", "what this host and the run's ranks on it do", "RUN").add_argument(
        "seconds", type=float, metavar="SECONDS", help="measure for so long"
    )
    command("runs", "names and processes of the runs below a folder that have processes on this host", "RUNS")
    command("stop", "ask the run to stop after its next step", "RUN").add_argument(
        "seconds", type=float, metavar="SECONDS", help="after so long its supervisor ends it"
    )
    return top


def main(argv: list[str]) -> None:
    """Do what the command line says."""
    options = parser().parse_args(argv)
    if options.command == "stop":
        ask_to_stop(options.folder, options.seconds)
        return
    answer: object
    if options.command == "runs":
        answer = {name: [p.pid for p in found] for name, found in processes_by_run(options.folder).items()}
    elif options.command == "host":
        answer = host_status(options.folder, options.seconds)
    elif options.command == "drawing":
        answer = drawing(options.folder, options.seconds)
    else:
        answer = look(options.folder, options.seconds)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
