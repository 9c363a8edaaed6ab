"""Read the state of a run from its folder, and ask it to stop. Reads files, locks and /proc.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input, so it is one
file and imports nothing of sdtune. For the subcommands: ``run_state.py --help``.

Two locks tell whether a run is going on: its supervisor holds ``.supervisor.lock``; mpirun and the ranks hold
``.lock``. Of a run that is a batch job Slurm tells it, since locks may not reach from one host to another.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

RUN = "SDTUNE_RUN"
"""Environment variable of all processes of a run: the absolute path of its folder."""
RANK = "SDTUNE_RANK"
"""Environment variable of the processes of a rank: its number."""

STATE = "state.json"
FINISHED = "finished.json"
JOB = "job.yaml"
STOP = "stop"
COLLECTED = ".collected"
EXPORTED = "openvino"
REPORT = "report.html"
SUPERVISOR_LOCK = ".supervisor.lock"
LAUNCH_LOCK = ".lock"
PLAN = "supervisor.json"
SUBMITTED = "slurm.json"
"""What was submitted last: the number of the job, and when."""
TABLE = ".side-by-side/table.json"
"""Below the folder of all runs: those that go on side by side, written by what deals the hosts out to them."""
TABLE_LOCK = ".side-by-side/lock"
TABLE_STOP = ".side-by-side/stop"
TABLE_LOG = ".side-by-side/log"
DRAWING = "drawing.json"
DRAWING_LOCK = ".drawing.lock"
DRAWING_LOG = "logs/drawing.log"
_SLURM_SECONDS = 60  # for a command of Slurm to answer
# Why a job in the queue will not start by itself, and what its user can do.
_NEVER = (
    (r"Held|held", "it is held; scontrol release {job} lets it start"),
    ("PartitionTimeLimit|WallDuration", "its time limit is above what is allowed; lower slurm_time_limit"),
    ("PartitionNodeLimit|MaxNode|GrpNode", "it asks for more nodes than are allowed; lower slurm_nodes"),
    ("PartitionDown|PartitionInactive", "its partition is closed; choose another slurm_partition"),
    ("[Aa]ccount|Association", "set slurm_account to one that you may use"),
    ("InvalidQOS|QOSNotAllowed", "set slurm_qos to one that you may use"),
    ("BadConstraints", "no node has the features that it asks for; change slurm_constraint"),
    ("MaxCpuPer|MaxMem|MinCpu|MinMem", "it asks for more than your account is allowed; ask for less"),
    ("DependencyNeverSatisfied", "it waits for a job that failed"),
)
_ENDED = ("finished", "failed", "stopped")
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


def _measure(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15  # neither True nor NaN


def _loss(value: Any) -> bool:
    return type(value) is float or _number(value, 0)  # a loss may be NaN


_METRICS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "step": {
        "step": lambda value: _number(value, 1),
        "loss": _loss,
        "step_s": _measure,
        "images_per_s": _measure,
    },
    "validation": {"step": lambda value: _number(value, 0), "loss": _loss},
}
"""What a line of ``metrics.jsonl`` has to say beside its kind and time, by its kind, and what each value has to be."""


def is_metric(line: dict[str, Any]) -> bool:
    """Whether a line of ``metrics.jsonl`` is one of a run: not damaged, and of no other program."""
    kind = line.get("kind")
    if not isinstance(kind, str) or not _measure(line.get("time")):
        return False
    return all(holds(line.get(name)) for name, holds in _METRICS.get(kind, {}).items())


def last_metrics(run: Path) -> list[dict[str, Any]]:
    """The last lines of a run's ``metrics.jsonl``, without those that are none of a run."""
    return [line for line in tail_of(run / "metrics.jsonl") if is_metric(line)]


class Unproven(Exception):
    """``finished.json`` does not prove that the run has finished. The message says why."""


def _number(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 10**9  # type(), for True is an int


def _text(value: Any, pattern: str = ".+") -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _signature(rank: Any) -> bool:
    numbers = {"rank": 0, "pid": 1, "samples": 0}  # a run that resumes after its last step makes no sample
    if not isinstance(rank, dict) or not _text(rank.get("host")):
        return False
    return all(_number(rank.get(name), least) for name, least in numbers.items())


_PROOF: dict[str, Callable[[Any], bool]] = {
    "run_name": _text,
    "steps": lambda value: _number(value, 1),
    "attempt": lambda value: _number(value, 1),
    "token_sha256": lambda value: _text(value, "[0-9a-f]{16}"),
    "job_sha256": lambda value: _text(value, "(?:[0-9a-f]{64})?"),
    "world_size": lambda value: _number(value, 1),
    "ranks": lambda value: isinstance(value, list) and all(map(_signature, value)),
    "learned": lambda value: (
        isinstance(value, dict)
        and len(value) > 0
        and all(_text(name, r"[^/]+\.safetensors") and _text(value[name], "[0-9a-f]{64}") for name in value)
    ),
}
"""What ``finished.json`` has to say, beside facts for display, and what each value has to be."""


def job_checksum(run: Path) -> str:
    """SHA-256 of the job file in a run folder; empty for a run that was started without one."""
    try:
        return hashlib.sha256((run / JOB).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def read_proof(run: Path) -> dict[str, Any]:
    """The content of ``finished.json``, which proves that all ranks of one attempt have finished this run.

    Raises:
        Unproven: it does not: a fact is missing, it is of another run, or what was learned is not there any more.
    """
    facts = _object(_read(run / FINISHED))
    if not facts:
        raise Unproven(f"{FINISHED} is missing or damaged")
    if not {"learned", "ranks", "job_sha256"} <= set(facts):
        raise Unproven(f"{FINISHED} does not say which ranks finished; an earlier version wrote it")
    wrong = [name for name, holds in _PROOF.items() if not holds(facts.get(name))]
    if wrong:
        raise Unproven(f"{FINISHED} is damaged: {', '.join(wrong)}")
    named, expected = {rank["rank"] for rank in facts["ranks"]}, facts["world_size"]
    if len(facts["ranks"]) != expected or named != set(range(len(facts["ranks"]))):
        raise Unproven(f"{FINISHED} names {len(named)} of {expected} ranks")
    asked = asked_name(run)
    if asked not in (None, facts["run_name"]):
        raise Unproven(f"{FINISHED} is of run {facts['run_name']}, not of {asked}")
    if facts["job_sha256"] != job_checksum(run):
        raise Unproven(f"{JOB} is not the one that it was trained with")
    for name, checksum in facts["learned"].items():
        try:
            found = hashlib.sha256((run / name).read_bytes()).hexdigest()
        except (OSError, ValueError):
            raise Unproven(f"{name} is missing") from None
        if found != checksum:
            raise Unproven(f"{name} is not what its ranks learned: it has another checksum")
    return facts


def why_unproven(run: Path) -> str:
    """Why ``finished.json`` does not prove that the run has finished; empty when it does."""
    try:
        read_proof(run)
    except Unproven as why:
        return str(why)
    return ""


def newest_checkpoint(run: Path) -> int | None:
    """The step of the newest checkpoint."""
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return max(steps, default=None)


def _asked(run: Path, pattern: str) -> str | None:
    """What the job says, read without a YAML library: launch_config has written the file."""
    found = re.search(pattern, _read(run / JOB), re.MULTILINE)
    return found.group(1) if found else None


def asked_name(run: Path) -> str | None:
    """``run_name`` of the job."""
    return _asked(run, r"""^run_name:\s*['"]?([^'"\s]+)""")


def asked_steps(run: Path) -> int | None:
    """``max_train_steps`` of the job."""
    steps = _asked(run, r"^\s*max_train_steps:\s*(\d{1,18})\b")
    return int(steps) if steps else None


def progress(run: Path, since: float) -> dict[str, Any]:
    """How far the run is, by its metrics since the Unix time ``since``.

    Returns:
        ``max_steps``, ``checkpoint``; after a step also ``step``, ``loss``, ``step_s``, ``images_per_s`` and ``eta_s``
        (including the time for validations); after a validation ``validation`` with its step and loss.
    """
    lines = [line for line in last_metrics(run) if line["time"] >= since]
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


def is_batch(run: Path) -> bool:
    """Whether Slurm starts this run."""
    return _object(_read(run / PLAN)).get("launcher") == "slurm"


class NoAnswer(Exception):
    """Slurm does not answer; the message says why."""


def _slurm(*command: str) -> str:
    """What a command of Slurm prints; empty for a job that Slurm has forgotten.

    Raises:
        NoAnswer: there is no such command, or it fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SLURM_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(str(error)) from None
    if done.returncode and "nvalid job id" not in done.stderr:
        raise NoAnswer((done.stderr or done.stdout).strip().split("\n")[-1][-200:])
    return done.stdout if done.returncode == 0 else ""


def drawing_name(run: Path) -> str:
    """Name of the batch job that generates a run's pictures."""
    return f"sdtune-draw-{run.name}"


def queued_job(run: Path, name: str = "") -> dict[str, str]:
    """The run's job in Slurm's queue, whoever submitted it; empty when there is none.

    Args:
        run: its folder.
        name: of the job; by default of the one that trains.
    """
    return queued_jobs([name or f"sdtune-{run.name}"]).get(run.resolve(), {})


def queued_jobs(names: list[str]) -> dict[Path, dict[str, str]]:
    """The jobs of these names in Slurm's queue, which is asked once, by the folder of their run, its links resolved.

    Returns:
        ``job``, its number; ``state`` and ``reason`` as Slurm names them; ``start``, when it starts or has started;
        ``nodes``; ``never``: why it will not start by itself, and what to do, empty where it may.
    """
    user, found = pwd.getpwuid(os.geteuid()).pw_name, {}
    named = f"--name={','.join(names)}"
    shown = _slurm("squeue", "--noheader", f"--user={user}", named, "--format=%i|%T|%r|%S|%N|%Z")
    for line in shown.splitlines():  # the last of a folder counts
        job, state, reason, start, nodes, folder = line.strip().split("|", 5)
        never = ""
        if state == "PENDING":
            never = next((words.format(job=job) for pattern, words in _NEVER if re.search(pattern, reason)), "")
        told = {"job": job, "state": state, "reason": reason, "start": start, "nodes": nodes, "never": never}
        found[Path(folder).resolve()] = told
    return found


def in_words(queued: dict[str, str], ours: dict[str, Any]) -> str:
    """What a job in the queue waits for, as the words after the run's name; ``ours``: what it wrote before."""
    again = " again" if ours else ""
    if queued["state"] != "PENDING":
        return f"is job {queued['job']},{again} {queued['state'].lower()} on {queued['nodes'] or 'no node yet'}"
    why = "" if queued["reason"] == "None" else f" ({queued['reason']})"  # Slurm has not looked at it yet
    words = f"is job {queued['job']},{again} pending{why}"
    if queued["never"]:
        return f"{words}: {queued['never']}"
    start = queued["start"].replace("T", " ")
    return words if start in ("", "N/A") else f"{words}, expected to start at {start}"


def ended_job(job: str) -> str:
    """How a job ended, in Slurm's words, such as ``CANCELLED``; empty when Slurm has forgotten it."""
    found = re.search(r"JobState=(\S+) Reason=(\S+)", _slurm("scontrol", "-o", "show", "job", job))
    if not found:
        return ""
    return found.group(1) + ("" if found.group(2) == "None" else f", {found.group(2)}")


def batch_state(run: Path, state: dict[str, Any], queued: dict[str, str]) -> dict[str, Any]:
    """The state of a run that is a batch job: what its job wrote last, corrected by what Slurm says.

    Args:
        run: its folder.
        state: see :func:`read_state`.
        queued: see :func:`queued_job`.
    """
    ours = state if state.get("job") == queued.get("job") else {}
    if queued and (queued["state"] != "RUNNING" or ours.get("state") != "running"):
        kept: dict[str, Any] = {name: ours[name] for name in ("failures", "attempt", "max_restarts") if name in ours}
        word = "pending" if queued["state"] in ("PENDING", "CONFIGURING", "COMPLETING", "REQUEUED") else "starting"
        word = "running" if ours.get("state") in _ENDED else word  # it is about to leave the queue
        since = ours.get("attempt_started", time.time())
        told = {"why": queued["reason"], "state": word, "attempt_started": since, "words": in_words(queued, kept)}
        return {"run_name": run.name, **kept, **queued, **told}
    submitted = _object(_read(run / SUBMITTED))
    job = submitted.get("job") if submitted.get("time", 0) > state.get("started", 0) else state.get("job")
    over = state.get("job") == job and state.get("state") not in ("running", "requeued")
    if queued or over or job is None:
        return state
    how = ended_job(str(job))
    before: dict[str, Any] = state if state.get("job") == job else {"run_name": run.name, "failures": []}
    ended = "stopped" if how.startswith("CANCELLED") else "failed"
    words = f"job {job} ended without a last word ({how or 'Slurm has forgotten it'}); see logs/slurm.log, and whether "
    words += f"the nodes can write to {run}"
    if how.startswith("CANCELLED"):
        words = f"from outside, as by scancel{'' if state.get('job') == job else ', before it started'}"
    return {**before, "state": ended, "job": job, "reason": words, "ended": time.time()}


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
        it has an OpenVINO copy, a report; ``lost``: the supervisor died before the run ended; ``rebooted``: its host
        was rebooted meanwhile; ``state``: see :func:`read_state`; ``progress``: see :func:`progress`; ``now``.
    """
    end = time.monotonic() + wait
    patience = end
    if is_batch(run):
        return _look_at_batch(run, end)
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
    lost = not supervised and state.get("state") in ("running", "waiting")
    return _seen(run, state, standstill=still, supervised=supervised, unsupervised=unsupervised, lost=lost)


def _look_at_batch(run: Path, end: float) -> dict[str, Any]:
    """The same of a batch job. Slurm is asked once a call, which waits until the job writes that it has ended.

    Where Slurm does not answer, the job is taken to go on as it did before; ``remark`` says so.
    """
    state, remark = read_state(run), ""
    try:
        queued = queued_job(run)
        state = batch_state(run, state, queued)
    except NoAnswer as error:
        remark = f"Slurm does not answer ({error}), which does not end the job"
        queued = {} if state.get("state") in _ENDED else {"job": str(state.get("job", "")), "state": "UNKNOWN"}
    while queued and state.get("state") == "running" and time.monotonic() < end:
        time.sleep(min(0.5, max(0.0, end - time.monotonic())))
        state = read_state(run)
        if state.get("state") in _ENDED:
            queued = {}
    if queued and state.get("state") != "running" and time.monotonic() < end:
        time.sleep(max(0.0, end - time.monotonic()))
    seen = _seen(run, state, standstill="", supervised=bool(queued), unsupervised=False, lost=False)
    return {**seen, "remark": remark}


def _seen(run: Path, state: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """What :func:`look` returns: what the folder says beside ``facts``."""
    exists, unproven = run.is_dir(), why_unproven(run)
    return {
        "exists": exists,
        "rebooted": facts["lost"] and state.get("boot") not in (None, boot()),
        "left": [] if exists else [p.pid for p in processes_by_run(run.parent).get(run.name, [])],
        "finished": (run / FINISHED).exists() and not unproven,
        "unproven": unproven if (run / FINISHED).exists() else "",
        "collected": (run / COLLECTED).exists(),
        "exported": (run / EXPORTED).exists(),
        "reported": (run / REPORT).exists(),
        "state": state,
        "progress": progress(run, 0 if facts["unsupervised"] else state.get("attempt_started", 0)),
        "now": time.time(),
        **facts,
    }


def table_row(name: str, seen: dict[str, Any]) -> dict[str, Any]:
    """A run as a line of the table of runs that go on side by side.

    Args:
        name: of the run.
        seen: see :func:`look`.

    Returns:
        ``run``, ``state``: waiting, running, finished, failed or stopped; ``hosts``, ``words``: what it does, where it
        makes no steps; ``never``: why it will not start; ``why``: Slurm's reason; after a step ``step``, ``max_steps``,
        ``loss``, ``eta_s``; of one that ended ``reason``.
    """
    state, progress = seen["state"], seen["progress"]
    row = {"run": name, "hosts": state.get("hosts") or [node for node in [state.get("nodes")] if node]}
    row.update({key: progress[key] for key in ("step", "max_steps", "loss", "eta_s") if key in progress})
    row.update({key: state[key] for key in ("never", "why", "started", "ended") if state.get(key)})
    if not (seen["supervised"] or seen["unsupervised"]):
        ended, reason = state.get("state", "failed"), state.get("reason", "")
        if seen["lost"]:
            ended, reason = "failed", "its host was rebooted" if seen["rebooted"] else "its supervisor died"
        elif ended == "finished" and not seen["finished"]:
            ended, reason = (
                "failed",
                f"it is not known to have finished: {seen['unproven'] or 'it has no finished.json'}",
            )
        return {**row, "state": ended, "reason": reason}
    if state.get("state") in ("pending", "starting"):
        return {**row, "state": "waiting", "words": state["words"]}
    words = seen["standstill"] or state.get("doing", "")
    if state.get("state") == "waiting":
        words = "waits for " + ", ".join(state.get("used_by") or state.get("waiting_for", []))
    if state.get("stopping"):
        words = "is stopping"
    return {**row, "state": "running", "words": words}


def table(runs: Path, names: list[str], wait: float = 0) -> dict[str, Any]:
    """The runs that go on side by side.

    Args:
        runs: the folder of all runs.
        names: those that are batch jobs, of which Slurm deals the hosts out; others are in the table that is there.
        wait: seconds to wait for a change, at most.

    Returns:
        ``going``: any of them may still make progress; ``rows``: see :func:`table_row`; ``began``; ``now``; ``log``:
        the last lines of what deals the hosts out.
    """
    if names:
        return _table_of_batch_jobs(runs, names, wait)
    end, written = time.monotonic() + wait, _read(runs / TABLE)
    while (going := is_locked(runs / TABLE_LOCK)) and time.monotonic() < end and _read(runs / TABLE) == written:
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
    found = {"rows": [], "began": time.time(), **_object(_read(runs / TABLE))}
    return {**found, "going": going, "now": time.time(), "log": _read(runs / TABLE_LOG).splitlines()[-20:]}


def stop_table(runs: Path, names: list[str], within: float) -> dict[str, Any]:
    """Ask runs that go on side by side to stop, all if none is named, and wait until they have ended.

    Returns:
        See :func:`table`.
    """
    request = json.dumps({"runs": names, "within": within}) + "\n"
    if is_locked(runs / TABLE_LOCK):
        (runs / f"{TABLE_STOP}.new").write_text(request, encoding="utf-8")
        (runs / f"{TABLE_STOP}.new").replace(runs / TABLE_STOP)
    end = time.monotonic() + within + 120
    while (seen := table(runs, [], 1))["going"] and time.monotonic() < end:
        if all(
            row["state"] not in ("waiting", "running") for row in seen["rows"] if row["run"] in (names or [row["run"]])
        ):
            break
    return seen


def _table_of_batch_jobs(runs: Path, names: list[str], wait: float) -> dict[str, Any]:
    time.sleep(wait)
    try:
        queued, remark = queued_jobs([f"sdtune-{name}" for name in names]), ""
    except NoAnswer as error:
        queued, remark = None, f"Slurm does not answer ({error}), which does not end the jobs"
    rows = [table_row(name, _seen_of_batch(runs / name, queued, remark)) for name in names]
    began = [_object(_read(runs / name / SUBMITTED)).get("time", time.time()) for name in names]
    left = [row for row in rows if row["state"] in ("waiting", "running") and "never" not in row]
    if any("never" in row for row in rows) and all(row.get("why") == "Dependency" for row in left):
        for row in left:
            row["never"] = "it waits for the end of one that cannot start"
    going = any(row["state"] in ("waiting", "running") and "never" not in row for row in rows)
    return {"going": going, "rows": rows, "began": min(began), "now": time.time(), "log": [], "remark": remark}


def _seen_of_batch(run: Path, jobs: dict[Path, dict[str, str]] | None, remark: str) -> dict[str, Any]:
    """What :func:`look` returns of a batch job, by what is in the queue; None: Slurm does not answer."""
    state = read_state(run)
    if jobs is None:
        queued = {} if state.get("state") in _ENDED else {"job": str(state.get("job", "")), "state": "UNKNOWN"}
    else:
        queued = jobs.get(run.resolve(), {})
        try:
            state = batch_state(run, state, queued)
        except NoAnswer:
            queued = {"job": str(state.get("job", "")), "state": "UNKNOWN"}
    seen = _seen(run, state, standstill="", supervised=bool(queued), unsupervised=False, lost=False)
    return {**seen, "remark": remark}


def drawing(run: Path, wait: float = 0) -> dict[str, Any]:
    """How far the generation of a run's pictures is.

    Args:
        run: the run folder.
        wait: seconds to wait for its end, at most.

    Returns:
        ``going``; ``state``: what it wrote last, with ``ended`` when all pictures are there; ``log``: its last lines;
        ``words``: of a batch job that has not drawn anything, what it waits for.
    """
    end = time.monotonic() + wait
    if is_batch(run):
        return _drawing_of_batch(run, end)
    while (going := is_locked(run / DRAWING_LOCK)) and time.monotonic() < end:
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
    return {"going": going, "state": _object(_read(run / DRAWING)), "log": _read(run / DRAWING_LOG).splitlines()[-20:]}


def _drawing_of_batch(run: Path, end: float) -> dict[str, Any]:
    """The same of a batch job. Slurm is asked once a call, which waits until the job writes that it has ended."""
    try:
        queued = queued_job(run, drawing_name(run))
    except NoAnswer as error:
        queued = {"state": "UNKNOWN", "never": "", "job": "?", "nodes": "", "reason": str(error), "start": ""}
    while queued and "ended" not in (state := _object(_read(run / DRAWING))) and time.monotonic() < end:
        time.sleep(min(0.5, max(0.0, end - time.monotonic())))
    state = _object(_read(run / DRAWING))
    words = in_words(queued, {}) if queued and not state else ""
    log = _read(run / DRAWING_LOG).splitlines()
    return {"going": bool(queued) and "ended" not in state, "state": state, "log": log[-20:], "words": words}


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


def boot() -> str:
    """What tells the boots of a host apart, and the starts of a container: the kernel's boot, and its first process."""
    first = _read("/proc/1/stat").rpartition(")")[2].split()
    return f"{_read('/proc/sys/kernel/random/boot_id').strip()} {first[19] if first else ''}"


def uptime() -> float:
    """For how many seconds this host, or container, has been up."""
    first = _read("/proc/1/stat").rpartition(")")[2].split()
    began = int(first[19]) / os.sysconf("SC_CLK_TCK") if first else 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def ranks_of(run: Path) -> dict[int, int]:
    """{rank: pid} of the run's ranks on this host."""
    return {
        int(process.environment[RANK]): process.pid
        for process in processes_by_run(run.parent).get(run.name, [])
        if re.fullmatch("[0-9]{1,9}", process.environment.get(RANK, ""))
        and any(x.endswith("textual_inversion.py") for x in process.command[:-1])
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
        "table": table(run.parent, []),
    }


def ask_to_stop(run: Path, within: float) -> None:
    """Request a stop: rank 0 stops after its step; the supervisor ends the run after ``within`` seconds.

    A batch job that has not started is taken out of the queue.
    """
    with contextlib.suppress(NoAnswer):
        queued = queued_job(run) if is_batch(run) else {}
        if queued and queued["state"] == "PENDING":
            _slurm("scancel", queued["job"])
            return
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
    text = "the runs that go on side by side"
    command("table", text, "RUNS").add_argument("seconds", type=float, metavar="SECONDS", help="wait for a change")
    commands.choices["table"].add_argument("--of", action="append", metavar="NAME", help="a run that Slurm starts")
    stops = command("stop-table", "ask runs that go on side by side to stop, and wait for it", "RUNS")
    stops.add_argument("seconds", type=float, metavar="SECONDS", help="after so long their supervisors end them")
    stops.add_argument("names", nargs="*", metavar="NAME", help="of the runs; by default all")
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
    elif options.command == "table":
        answer = table(options.folder, options.of or [], options.seconds)
    elif options.command == "stop-table":
        answer = stop_table(options.folder, options.names, options.seconds)
    elif options.command == "host":
        answer = host_status(options.folder, options.seconds)
    elif options.command == "drawing":
        answer = drawing(options.folder, options.seconds)
    else:
        answer = look(options.folder, options.seconds)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
