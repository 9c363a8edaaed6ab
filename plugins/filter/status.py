"""Filters of the roles status and stop: what run_state.py says of a run and its hosts, in words and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MEGABYTE = 1024 * 1024
COLUMNS = "%-16s %6s %6s %9s %9s %6s %9s %6s %9s"
TITLES = ("host", "ranks", "CPU %", "ranks MB", "free MB", "load", "net MB/s", "deg C", "throttled")
DEAD_STATES = "TtZX"  # a process that is stopped, traced, a zombie, dead


def status_answer(lines: Sequence[str]) -> dict[str, Any] | None:
    """What ``run_state.py host`` printed: the last line, as sudo or a login script may print others before it.

    Returns:
        its JSON; nothing if the host did not answer or printed no JSON.
    """
    last = lines[-1] if lines else ""
    return json.loads(last) if last.startswith("{") else None


def run_is_active(run: Mapping[str, Any]) -> bool:
    """Whether a process works for the run: its supervisor, or an mpirun without one."""
    return bool(run.get("supervised") or run.get("unsupervised"))


def run_state_words(run: Mapping[str, Any] | None) -> str:
    """What the run does, as the words after its name.

    Args:
        run: ``run`` of what the primary answered; nothing if it did not answer.
    """
    if run is None:
        return "cannot be told, the primary does not answer"
    state = run["state"]
    if not run["exists"]:
        left = ", ".join(map(str, run["left"]))
        return f"has lost its folder, while processes work for it: {left}" if left else "has no folder"
    if run["standstill"]:
        return f"stands still: {run['standstill']}"
    job, hosts = state.get("job"), ", ".join(state.get("hosts", []))
    if run["supervised"]:
        if state.get("stopping"):
            return "is stopping"
        if state.get("state") in ("pending", "starting"):
            return str(state["words"])
        if state.get("state") == "waiting" and "used_by" in state:
            return "waits for " + ", ".join(f"{host}, used by {others}" for host, others in state["used_by"].items())
        if state.get("state") == "waiting":
            return f"waits for {', '.join(state['waiting_for'])}"
        doing = f", {state['doing']}" if "doing" in state else ""
        return f"is going on{f', as job {job} on {hosts}' if job else ''}{doing}"
    if run_is_active(run):
        return "is going on, unsupervised"
    if run["lost"]:
        return "ended when its host was rebooted" if run.get("rebooted") else "died with its supervisor"
    if run["finished"]:
        return "is finished"
    if run.get("unproven"):
        return f"is not known to have finished: {run['unproven']}"
    return f"{state['state']}: {state['reason']}" if "reason" in state else "is not going on"


def _duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _step_line(run: Mapping[str, Any]) -> str:
    """How far the training is."""
    progress = run["progress"]
    parts = [f"step {progress['step']} of {progress['max_steps']}", f"loss {progress['loss']:.4f}"]
    if "validation" in progress:
        parts.append(f"validation {progress['validation']['loss']:.4f}")
    parts += [f"{progress['step_s']:.3g} s/step", f"{progress['images_per_s']:.3g} images/s"]
    if run_is_active(run):
        parts.append(f"ETA {_duration(progress.get('eta_s', 0))}")
    return ", ".join(parts)


def _run_lines(run: Mapping[str, Any] | None, drawing: Mapping[str, Any], name: str) -> Iterator[str]:
    """The lines about the run."""
    yield f"run {name} {run_state_words(run)}"
    if run is None:
        return
    if not run["exists"]:
        return
    progress, state = run["progress"], run["state"]
    if "step" in progress:
        yield _step_line(run)
    checkpoint = progress.get("checkpoint")
    newest = "none" if checkpoint is None else f"step {checkpoint}"
    yield f"attempt {state.get('attempt', 1)} of {state.get('max_restarts', 0) + 1}, newest checkpoint: {newest}"
    if drawing.get("going"):
        drawn = drawing.get("state", {})
        count = f": {drawn['pictures']} of {drawn['of']}" if "of" in drawn else ""
        eta = f", ETA {_duration(drawn['eta_s'])}" if drawn.get("eta_s") else ""
        yield f"pictures are being drawn{count}{eta}"


def _table_lines(table: Mapping[str, Any]) -> Iterator[str]:
    """The runs that go on side by side."""
    if not table.get("going"):
        return
    for row in table["rows"]:
        hosts = f" on {', '.join(row['hosts'])}" if row["hosts"] else ""
        step = f", step {row['step']} of {row['max_steps']}" if "step" in row else ""
        yield f"run {row['run']} is {row['state']}{hosts}{step}"


def _host_line(host: str, seen: Mapping[str, Any] | None) -> str:
    """A host's line of the table."""
    if seen is None:
        return f"{host:<16} does not answer"

    def known(value: float | None, text: str) -> str:
        return "-" if value is None else text % value

    traffic = seen["bytes_per_s"]
    return COLUMNS % (
        host,
        len(seen["ranks"]),
        sum(rank["cpu"] for rank in seen["ranks"]),
        sum(rank["memory"] for rank in seen["ranks"]) // MEGABYTE,
        seen["available"] // MEGABYTE,
        f"{seen['load']:.1f}",
        known(None if traffic is None else traffic / 1e6, "%.2f"),
        known(seen["temperature"], "%.0f"),
        known(seen["throttled"], "%s"),
    )


def _rank_lines(host: str, seen: Mapping[str, Any], run: Mapping[str, Any] | None) -> Iterator[str]:
    """What is wrong with the ranks of a host, with the last lines of their logs."""
    for rank in seen["ranks"]:
        if rank["sick"]:
            state = f" (state {rank['state']})" if rank["state"] in DEAD_STATES else ""
            yield f"rank {rank['rank']} on {host}{state}: {rank['log'] or 'its log is empty'}"
    if run is None or not run["supervised"] or host not in run["state"].get("hosts", []):
        return
    wanted = run["state"]["ranks_per_node"]
    if len(seen["ranks"]) < wanted:
        logs = " | ".join(filter(None, seen["logs"].values())) or "nothing"
        yield f"{host}: {len(seen['ranks'])} of {wanted} ranks are there; the logs end with {logs}"


def status_table(seen: Mapping[str, Mapping[str, Any] | None], primary: str, name: str) -> list[str]:
    """The table of a cluster: the run, a line for each host, then the ranks that need attention.

    Args:
        seen: ``{host: what run_state.py said, or nothing}``, in the order of the table.
        primary: the host whose view of the run counts.
        name: name of the run.
    """
    answer = seen.get(primary) or {}
    run = answer.get("run")
    lines = [
        *_run_lines(run, answer.get("drawing", {}), name),
        *_table_lines(answer.get("table", {})),
        COLUMNS % TITLES,
    ]
    lines += [_host_line(host, said) for host, said in seen.items()]
    for host, said in seen.items():
        if said is not None:
            lines += _rank_lines(host, said, run)
    return lines


def stopped_table(table: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """How runs that went on side by side ended, a line for each; ``names``: those that were to stop."""
    rows = [row for row in table["rows"] if row["run"] in names]
    return [f"{row['run']} is {row['state']} {row.get('reason', '')}".rstrip() for row in rows]


def stop_summary(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """How a run ended, and how to continue it.

    Args:
        name: name of the run.
        before: what ``run_state.py look`` said before the request to stop.
        after: the same, after the end of the run.
    """
    state = after["state"].get("state", "stopped")
    if not after["exists"]:
        return f"{name} {run_state_words(after)}"
    if not run_is_active(before):
        words = "is not going on"
    elif state == "stopped":
        words = f"has stopped {after['state'].get('reason', '')}".rstrip()
    else:
        words = f"has {state}"
    checkpoint = after["progress"].get("checkpoint")
    if after["finished"]:
        rest = "it is complete"
    elif checkpoint is None:
        rest = "it has no checkpoint"
    else:
        rest = f"go on from step {checkpoint} with train.yml -e training_resume_from_checkpoint=auto"
    return f"{name} {words}; {rest}"


def stop_obstacle(run: Mapping[str, Any], seconds: float = 0) -> str:
    """Why a run does not stop, and what to do; empty if nothing is in the way.

    Args:
        run: what ``run_state.py look`` says of a run.
        seconds: how long it was waited for, after the request to stop.
    """
    if run["standstill"]:
        return f"{run['standstill']}; then type the same again"
    if not seconds or not run_is_active(run):
        return ""
    if run["supervised"]:
        return f"its supervisor has not ended it within {seconds:.0f} s; what it does is in logs/supervisor.log"
    return f"it made no step for {seconds:.0f} s and has no supervisor that could end it; end its mpirun yourself"


class FilterModule:
    """Make the functions filters."""

    def filters(self) -> dict[str, Any]:
        """``{name: function}``."""
        functions = (status_answer, status_table, run_is_active, stop_summary, stopped_table, stop_obstacle)
        return {function.__name__: function for function in functions}
