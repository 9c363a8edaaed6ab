"""Follow runs that go on side by side until the last of them ends, and show them as one live table.

The runs do not depend on this, as those that ``follow`` shows do not. What there is to see is in a file that the
primary writes, or, of batch jobs, in Slurm's queue and in the run folders.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2]))
from plugins.action import follow

COLUMNS = "%-20s %11s %9s %8s  %s"
_QUIET_SECONDS = 60.0  # where a line cannot replace the one before, print the table at least this often
_GOING = ("waiting", "running")


def ended_line(row: Mapping[str, Any]) -> str:
    """A run that has ended, in one line."""
    where = f" on {', '.join(row['hosts'])}" if row["hosts"] else ""
    steps = f", step {row['step']}" if "step" in row else ""
    since = row.get("began") or row.get("started")
    took = f", {follow.span(row['ended'] - since)}" if since and "ended" in row else ""
    return f"{row['run']}: {row['state']}{where}{steps}{took}{'; ' + row['reason'] if row.get('reason') else ''}"


def _running_line(row: Mapping[str, Any]) -> str:
    hosts = ", ".join(row["hosts"])
    if row.get("words") or "step" not in row:
        return f"{row['run']:<20} {row.get('words') or 'is starting'}{f' on {hosts}' if hosts else ''}"
    eta = follow.span(row["eta_s"]) if "eta_s" in row else "-"
    return COLUMNS % (row["run"], f"{row['step']}/{row.get('max_steps', '?')}", f"{row['loss']:.4f}", eta, hosts)


def _rate(rows: Iterable[Mapping[str, Any]], began: float, now: float) -> str:
    finished = sum(row["state"] == "finished" for row in rows)
    return f"; {3600 * finished / (now - began):.3g} concepts per hour" if finished and now > began else ""


def table_lines(seen: Mapping[str, Any]) -> list[str]:
    """The table: a line for each run that is going on, and one for all others."""
    rows = seen["rows"]
    lines = [COLUMNS % ("run", "step", "loss", "ETA", "hosts")]
    lines += [_running_line(row) for row in rows if row["state"] == "running"]
    waiting = [row for row in rows if row["state"] == "waiting"]
    lines += [f"{row['run']:<20} {row['words']}" for row in waiting if row.get("words")][:3]
    counts = [(state, sum(row["state"] == state for row in rows)) for state in ("finished", "failed", "stopped")]
    words = ", ".join(f"{count} {state}" for state, count in [*counts, ("waiting", len(waiting))] if count)
    remark = f"; {seen['remark']}" if seen.get("remark") else ""
    silent = f"; {', '.join(seen['silent'])} do not answer" if seen.get("silent") else ""
    return [*lines, f"{words or 'none has ended'}{_rate(rows, seen['began'], seen['now'])}{silent}{remark}"]


class ActionModule(follow.ActionModule):
    """The action ``follow_runs``."""

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        """Follow them; the result has the ``rows`` of the last table. Runs that failed do not fail the task."""
        result = ActionBase.run(self, tmp, task_vars)
        arguments = self._task.args
        self._script = Path(arguments["script"]).read_bytes()
        self._reconnect_timeout = float(arguments.get("reconnect_timeout", 120))
        self._live = follow.on_terminal()
        names = [word for name in arguments.get("names") or [] for word in ("--of", name)]
        self._command = shlex.join([arguments["python"], "-", "table", arguments["runs_dir"], *names])
        seen = self._follow_table()
        result.update(changed=True, rows=seen["rows"])
        left = [row["run"] for row in seen["rows"] if row["state"] in _GOING and not row.get("never")]
        if left:
            why = f": {seen['log'][-1]}" if seen["log"] else ""
            host = (task_vars or {}).get("inventory_hostname", "the primary")
            message = f"{host}: what deals the hosts out has died{why}; of {', '.join(left)}, those that run go on"
            result.update(failed=True, msg=f"{message}: type the same again to follow them and start the others")
        return result

    def _follow_table(self) -> dict:
        reported: set[str] = set()
        printed, last, shown, wait, hopeless = 0.0, "", 0, 0.0, 0
        while True:
            seen = self._ask(wait)
            ended = [row for row in seen["rows"] if row["state"] not in _GOING and row["run"] not in reported]
            lines = table_lines(seen)
            mark = str([(row["state"], row["hosts"], row.get("never")) for row in seen["rows"]])
            if self._live:
                text = "".join(f"{line}\x1b[K\n" for line in [*map(ended_line, ended), *lines])
                follow.display.display(
                    f"{f'{chr(27)}[{shown}A' if shown else ''}{text}\x1b[J", newline=False, screen_only=True
                )
                shown = len(lines)
            else:
                for row in ended:
                    follow.display.display(ended_line(row))
                if seen["going"] and (mark != last or time.monotonic() - printed > _QUIET_SECONDS):
                    follow.display.display("\n".join(lines))
                    printed, last = time.monotonic(), mark
            reported |= {row["run"] for row in ended}
            # a reason that ends by itself has ended when Slurm has looked at the job again
            stuck = not seen["going"] and any(row.get("never") for row in seen["rows"])
            hopeless = hopeless + 1 if stuck else 0
            if not seen["going"] and not 0 < hopeless <= follow.LOOKS_AT_HOPELESS:
                return seen
            wait = self._interval(seen)
