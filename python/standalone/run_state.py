"""What a run folder says of its run, and how to ask it to stop. Reads files and locks; needs nothing but a Python 3.9.

Ansible feeds this file to a host's own Python, so it imports nothing of sdtune:

    python run_state.py look RUN [SECONDS]   the run as JSON; waits up to so many seconds for its end
    python run_state.py host RUN SECONDS     the same, and what this host and its ranks do in so many seconds
    python run_state.py runs RUNS            names of the runs below a folder that have processes on this host, as JSON
    python run_state.py drawing RUN [SECONDS]  how far the drawing of its pictures is; waits up to so long for its end
    python run_state.py stop RUN SECONDS     ask the run to stop after its next step; its supervisor insists after that

Two locks tell who is at work: ``.supervisor.lock`` is held by the supervisor, ``.lock`` by mpirun and its ranks.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

STATE = "state.json"
STOP = "stop"
COLLECTED = ".collected"
EXPORTED = "openvino"
REPORT = "report.html"
SUPERVISOR_LOCK = ".supervisor.lock"
LAUNCH_LOCK = ".lock"
DRAWING = "drawing.json"
DRAWING_LOCK = ".drawing.lock"
DRAWING_LOG = "logs/drawing.log"
_TAIL = 262_144  # bytes at the end of metrics.jsonl that are looked at: hundreds of steps
_WINDOW = 20  # steps over which speed is averaged


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock; the kernel frees it when the last holder ends, however it ends."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_state(run: Path) -> dict[str, Any]:
    """What the supervisor wrote last; empty where none ever did."""
    try:
        state: dict[str, Any] = json.loads((run / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state


def tail_of(path: Path, size: int = _TAIL) -> list[dict[str, Any]]:
    """The last objects of a file of JSON lines, none of them cut."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start = file.seek(max(0, end - size))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    lines = text.split("\n")
    return [json.loads(line) for line in lines[1 if start else 0 : -1] if line]


def newest_checkpoint(run: Path) -> int | None:
    """The step of the newest checkpoint."""
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return max(steps, default=None)


def asked_steps(run: Path) -> int | None:
    """``max_train_steps`` of the job, without a YAML reader: the file is written by launch_config."""
    try:
        found = re.search(r"^\s*max_train_steps:\s*(\d+)", (run / "job.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    except FileNotFoundError:
        return None
    return int(found.group(1)) if found else None


def progress(run: Path, since: float) -> dict[str, Any]:
    """How far the run is by its metrics, of which only those after ``since`` (Unix time) count.

    Returns:
        ``max_steps``, ``checkpoint``; after a step ``step``, ``loss``, ``step_s``, ``images_per_s``, ``eta_s`` (also
        of the validations that it will take); after a validation ``validation`` with its step and loss.
    """
    lines = [line for line in tail_of(run / "metrics.jsonl") if line.get("time", 0) >= since]
    steps = [line for line in lines if line["kind"] == "step"]
    validations = [line for line in lines if line["kind"] == "validation"]
    most = asked_steps(run)
    found: dict[str, Any] = {"max_steps": most, "checkpoint": newest_checkpoint(run)}
    if validations:
        found["validation"] = {key: validations[-1].get(key) for key in ("step", "loss", "gap_closed")}
    if steps:
        last, window = steps[-1], steps[-_WINDOW:]
        found.update(step=last["step"], loss=last["loss"], world_size=last.get("world_size"))
        found["step_s"] = sum(line["step_s"] for line in window) / len(window)
        found["images_per_s"] = sum(line["images_per_s"] for line in window) / len(window)
        if most is not None:
            spent = last["time"] - window[0]["time"]  # of the wall: validations and checkpoints are in it
            each = spent / (len(window) - 1) if len(window) > 1 else last["step_s"]
            found["eta_s"] = max(0, most - last["step"]) * each
    return found


def look(run: Path, wait: float = 0) -> dict[str, Any]:
    """All that there is to say of a run; returns early when it ends.

    Returns:
        ``supervised`` and ``by_hand``: who is at work, if anyone; ``finished``; ``collected``: its results were brought
        to a control node; ``exported``, ``reported``: it has an OpenVINO copy, a report; ``lost``: the supervisor died
        before the run ended; ``state`` and ``progress``, see there.
    """
    end = time.monotonic() + wait
    while True:
        supervised = is_locked(run / SUPERVISOR_LOCK)
        by_hand = not supervised and is_locked(run / LAUNCH_LOCK)
        if not (supervised or by_hand) or time.monotonic() >= end:
            break
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
    state = read_state(run)
    return {
        "supervised": supervised,
        "by_hand": by_hand,
        "finished": (run / "finished.json").exists(),
        "collected": (run / COLLECTED).exists(),
        "exported": (run / EXPORTED).exists(),
        "reported": (run / REPORT).exists(),
        "lost": not supervised and state.get("state") in ("running", "waiting"),
        "state": state,
        "progress": progress(run, 0 if by_hand else state.get("attempt_started", 0)),
        "now": time.time(),
    }


def drawing(run: Path, wait: float = 0) -> dict[str, Any]:
    """How far the drawing of a run's pictures is; returns early when it ends.

    Returns:
        ``going``; ``state``: what it wrote last, with ``ended`` once all pictures are there; ``log``: its last lines.
    """
    end = time.monotonic() + wait
    while (going := is_locked(run / DRAWING_LOCK)) and time.monotonic() < end:
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
    text = _read(run / DRAWING)
    lines = _read(run / DRAWING_LOG).splitlines()
    return {"going": going, "state": json.loads(text) if text else {}, "log": lines[-20:]}


def processes_of(runs: Path) -> dict[str, list[int]]:
    """Processes of this host that work for a run below the folder: {name of the run: [pid]}."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile, or of a user whom we may not ask
            continue
        for value in environment:
            if value.startswith(b"SDTUNE_RUN="):
                run = Path(value[11:].decode(errors="replace"))
                if run.parent == runs:
                    found.setdefault(run.name, []).append(int(entry.name))
        if b"sdtune.launch" in command and b"run" in command:
            run = Path(command[command.index(b"run") + 1].decode(errors="replace"))
            if run.parent == runs:
                found.setdefault(run.name, []).append(int(entry.name))
    return found


def _read(path: Path | str) -> str:
    """A small file of the kernel's; empty where it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def ranks_of(run: Path) -> dict[int, int]:
    """{rank: pid} of the run's ranks on this host."""
    found = {}
    for pid in processes_of(run.parent).get(run.name, []):
        environment = dict(x.partition("=")[::2] for x in _read(f"/proc/{pid}/environ").split("\0"))
        if "textual_inversion.py\0--job" in _read(f"/proc/{pid}/cmdline") and environment.get("PMI_RANK", "").isdigit():
            found[int(environment["PMI_RANK"])] = pid
    return found


def _cpu_seconds(pid: int) -> tuple[float, str, int]:
    """Processor time of a process, its state letter, its resident bytes; it may have ended."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return 0.0, "X", 0
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), fields[0], int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def _traffic(interface: str) -> int | None:
    """Bytes that an interface has sent and received."""
    counts = [_read(f"/sys/class/net/{interface}/statistics/{way}_bytes") for way in ("rx", "tx")]
    return sum(map(int, counts)) if interface and all(counts) else None


def _throttled() -> int | None:
    """How often cores were slowed down for heat, where the kernel counts it."""
    counts = [
        _read(path) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    ]
    return sum(map(int, filter(None, counts))) if counts else None


def _hottest() -> float | None:
    """The highest temperature that a sensor tells, in degrees."""
    zones = [
        *Path("/sys/class/hwmon").glob("hwmon*/temp*_input"),
        *Path("/sys/class/thermal").glob("thermal_zone*/temp"),
    ]
    values = [int(text) / 1000 for text in map(_read, zones) if text.strip().lstrip("-").isdigit()]
    return max(values, default=None)


def _last_line(path: Path) -> str:
    """The last line of a log that says something."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def host_status(run: Path, seconds: float) -> dict[str, Any]:
    """What the host and the run's ranks on it do, watched for so long; changes nothing."""
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
        sick = state in "TtZX" or log.startswith(("error:", "guard:")) or "Error" in log
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
    """Leave the request; rank 0 sees it after its step, the supervisor within a second."""
    (run / STOP).write_text(json.dumps({"within": within, "asked": time.time()}) + "\n", encoding="utf-8")


def main(argv: list[str]) -> None:
    """See above."""
    command, folder = argv[0], Path(argv[1])
    if command == "look":
        print(json.dumps(look(folder, float(argv[2]) if len(argv) > 2 else 0)))
    elif command == "host":
        print(json.dumps(host_status(folder, float(argv[2]))))
    elif command == "drawing":
        print(json.dumps(drawing(folder, float(argv[2]) if len(argv) > 2 else 0)))
    elif command == "runs":
        print(json.dumps(processes_of(folder)))
    elif command == "stop":
        ask_to_stop(folder, float(argv[2]))
    else:
        sys.exit(f"error: {command!r} is none of look, host, runs, stop")


if __name__ == "__main__":
    main(sys.argv[1:])
