"""Filters of role diagnose: the rows of all hosts as a table, and the verdict. For rows see findings.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def diagnosis_lost(hosts: Iterable[str]) -> list[Row]:
    """A row for each host that was lost while it was asked."""
    row = {
        "check": "answer",
        "ok": False,
        "found": "it was lost while it was asked, see above",
        "remedy": "look at that error, then run diagnose.yml again",
        "pair": False,
    }
    return [{"host": host, **row} for host in hosts]


def _between(wrong: Sequence[Row]) -> dict[str, Row]:
    """Of checks between hosts: the hosts that most of what is wrong is about, and the first row of it.

    The sum over all hosts counts only where every pair is fine; then it may be any of them.
    """
    rows = [row for row in wrong if row["check"] != "all-reduce"] or wrong
    counts = Counter([row["host"] for row in rows] + [host for row in rows for host in row.get("with", [])])
    return {" or ".join(host for host, count in counts.items() if count == max(counts.values())): rows[0]}


def diagnosis_verdict(rows: Sequence[Row]) -> str:
    """One line: all is well, or which host is faulty, why, and the remedy.

    The first thing that is wrong with a host itself brings the others about. What is wrong between hosts counts only
    where nothing is wrong with any host itself.
    """
    wrong = [row for row in rows if not row["ok"]]
    if not wrong:
        return f"All is well with {', '.join(dict.fromkeys(row['host'] for row in rows))}."
    first: dict[str, Row] = {}
    for row in wrong:
        if not row["pair"]:
            first.setdefault(row["host"], row)
    if not first:
        blamed = _between(wrong)
    else:
        same: dict[str, list[Row]] = {}
        for _, row in sorted(first.items()):
            same.setdefault(row["found"], []).append(row)
        blamed = {", ".join(row["host"] for row in group): group[0] for group in same.values()}
    texts = [f"{hosts}: {row['check']}: {row['found']}; {row['remedy']}" for hosts, row in blamed.items()]
    return f"Culprit: {' | '.join(texts)}"


def diagnosis_table(rows: Sequence[Row]) -> list[str]:
    """A line for each row, in columns."""
    host = max((len(row["host"]) for row in rows), default=0)
    check = max((len(row["check"]) for row in rows), default=0)
    return [
        f"{row['host']:<{host}}  {row['check']:<{check}}  {'ok   ' if row['ok'] else 'WRONG'}  {row['found']}"
        + ("" if row["ok"] else f"; {row['remedy']}")
        for row in rows
    ]


class FilterModule:
    """Make the functions filters."""

    def filters(self) -> dict[str, Any]:
        """``{name: function}``."""
        return {function.__name__: function for function in (diagnosis_lost, diagnosis_verdict, diagnosis_table)}
