"""The report page of one run: what its template gets."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sdtune.launch.run_folder import Run
from sdtune.report.charts import run as charts
from sdtune.report.findings import findings
from sdtune.report.formatting import number, seconds, share, size
from sdtune.report.pictures import embed
from sdtune.report.record import GeneratedImage, RunRecord, read_run
from sdtune.report.rendering import render

_MOST_VALIDATIONS, _MOST_IMAGES = 6, 48
"""Validations whose images are shown, and images that were generated with the finished run."""


def spread_out(items: Sequence[int], most: int) -> list[int]:
    """At most ``most`` items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """The numbers at the top: (value, what it is, a note)."""
    tiles = []
    last = run.validations[-1] if run.validations else None
    if last is not None:
        loss = f"validation loss {number(run.validations[0]['loss'])} → {number(last['loss'])}"
        if last.get("gap_closed") is not None:
            tiles.append((share(last["gap_closed"]), "of the gap to the reference caption closed", loss))
        else:
            tiles.append(
                (number(last["loss"]), "validation loss", f"{number(run.validations[0]['loss'])} before training")
            )
    if run.steps:
        typical = median(s["step_s"] for s in run.steps)
        pictures = run.start["global_batch"] / typical
        tiles.append(
            (seconds(typical), "median step time", f"{pictures:.3g} pictures per second, {len(run.steps)} steps")
        )
    world = run.start["world_size"]
    hosts = len(run.hosts) or 1
    threads = run.start.get("threads_per_rank")
    tiles.append(
        (
            f"{world} {'rank' if world == 1 else 'ranks'}",
            f"on {hosts} {'host' if hosts == 1 else 'hosts'}",
            f"{threads} {'thread' if threads == 1 else 'threads'} each, {run.start['global_batch']} pictures per step",
        )
    )
    if world > 1 and run.steps:
        total = sum(s["sync_bytes"] for s in run.steps)
        tiles.append((size(run.steps[-1]["sync_bytes"]), "exchanged per step", f"{size(total)} in the whole run"))
    if run.finished is not None:
        tiles.append((seconds(run.finished["seconds"]), "total time", "with loading, validation and images"))
    return tiles


def _validation_rows(run: RunRecord) -> list[dict[str, Any]]:
    last = run.finished["steps"] if run.finished else None
    rows = []
    for step in spread_out(list(run.validation), _MOST_VALIDATIONS):
        name = "Before training" if step == 0 else "After training" if step == last else "During training"
        rows.append({"name": name, "step": step, "pictures": run.validation[step]})
    return rows


def _by_prompt(images: list[GeneratedImage]) -> dict[str, list[GeneratedImage]]:
    found: dict[str, list[GeneratedImage]] = {}
    for image in images:
        found.setdefault(image.prompt, []).append(image)
    return found


def _group_equal(hosts: list[dict[str, Any]]) -> list[tuple[list[str], dict[str, Any]]]:
    """Groups of hosts that differ only in their names and rank numbers: (names, facts of the first)."""
    found: list[tuple[list[str], dict[str, Any], dict[str, Any]]] = []
    for host in hosts:
        facts = {**host, "host": None, "ranks": len(host["ranks"])}
        for names, _, known in found:
            if known == facts:
                names.append(host["host"])
                break
        else:
            found.append(([host["host"]], host, facts))
    return [(names, host) for names, host, _ in found]


def _repeat(run: RunRecord) -> str:
    """The command that repeats the run."""
    if (run.folder / "launch.sh").is_file():
        return f"cd {run.folder}\n./launch.sh --overwrite"
    return "python textual_inversion.py --job job.yaml   # with the settings below"


def write_report(folder: str | Path, output: Path | None = None) -> Path:
    """Write the page of one run to ``report.html`` in its folder, or to ``output``.

    Raises:
        BadInput: the folder holds no run that was started, or the page would be too large.
    """
    run = read_run(folder)
    rows = _validation_rows(run)
    drawn = run.images[:_MOST_IMAGES]
    shown = [*run.concept, *(p for row in rows for p in row["pictures"].values()), *(d.path for d in drawn)]
    return render(
        "report.html.j2",
        output or Run(folder).report,
        run=run,
        title=run.name,
        tiles=_tiles(run),
        findings=findings(run),
        rows=rows,
        prompts=_by_prompt(drawn),
        left_out=len(run.images) - len(drawn),
        embedded=embed(shown),
        charts=[c for c in (charts.validation_loss(run), charts.step_time(run), charts.ranks(run)) if c is not None],
        hosts=_group_equal(run.hosts),
        settings=run.settings(),
        repeat=_repeat(run),
        precision={"no": "float32"}.get(run.start["mixed_precision"], run.start["mixed_precision"]),
    )
