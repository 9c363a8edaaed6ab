"""The page that compares several runs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sdtune.errors import BadInput
from sdtune.report.charts import comparison as charts
from sdtune.report.formatting import NOTHING, number, seconds, share
from sdtune.report.pictures import embed
from sdtune.report.record import RunRecord, read_run
from sdtune.report.rendering import render

_MOST_CELLS = 96
"""Images on the page, of all runs together."""


def _differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings that differ between the runs."""
    jobs = [dict(run.settings()) for run in runs]
    keys = dict.fromkeys(k for job in jobs for k in job)
    return [
        (key, values)
        for key in keys
        if key not in ("run_name", "run_dir", "overwrite")
        and len(set(values := [job.get(key, NOTHING) for job in jobs])) > 1
    ]


def _outcomes(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Results of each run."""

    def last(run: RunRecord, key: str) -> float | None:
        return run.validations[-1].get(key) if run.validations else None

    outcomes: list[tuple[str, list[str]]] = [
        ("last validation loss", [NOTHING if (x := last(r, "loss")) is None else number(x) for r in runs]),
        ("gap closed", [NOTHING if (x := last(r, "gap_closed")) is None else share(x) for r in runs]),
        ("steps", [str(r.steps[-1]["step"]) if r.steps else NOTHING for r in runs]),
        ("median step time", [seconds(median(s["step_s"] for s in r.steps)) if r.steps else NOTHING for r in runs]),
        ("ranks", [str(r.start["world_size"]) for r in runs]),
        ("total time", [seconds(r.finished["seconds"]) if r.finished else "not finished" for r in runs]),
    ]
    return outcomes


def _concepts_per_hour(runs: Sequence[RunRecord]) -> str:
    """How many runs finished in an hour, from the start of the first to the last step of the last; empty for none."""
    finished = [run for run in runs if run.finished and run.steps]
    if not finished:
        return ""
    took = max(run.steps[-1]["time"] for run in finished) - min(run.start["time"] for run in finished)
    if took <= 0:
        return ""
    return (
        f"{len(finished)} runs finished within {seconds(took)}: {number(3600 * len(finished) / took)} concepts per hour"
    )


def _side_by_side(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Images with one prompt and seed, one of each run: first of the last validation, then those generated later."""
    wanted: dict[tuple[str, str], dict[Path, Path]] = {}
    validated = [run for run in runs if run.validation]
    prompts = {run.setting("validation", "prompt") or "" for run in validated}
    prompt = prompts.pop() if len(prompts) == 1 else "Each run's own validation prompt"
    for run in validated:
        for seed, path in run.validation[max(run.validation)].items():
            wanted.setdefault((f"{prompt} (PyTorch, during training)", str(seed)), {})[run.folder] = path
    for run in runs:
        for image in run.images:
            wanted.setdefault((f"{image.prompt} ({image.how})", image.seed), {})[run.folder] = image.path
    rows = [
        {"prompt": prompt, "seed": seed, "pictures": [found.get(run.folder) for run in runs]}
        for (prompt, seed), found in wanted.items()
    ]
    return rows[: max(2, _MOST_CELLS // len(runs))]


def write_comparison(folders: Sequence[str | Path], output: Path | None = None) -> Path:
    """Write the page that compares runs: ``comparison.html`` beside the first run folder, or ``output``.

    Raises:
        BadInput: fewer than two runs, or a folder holds none that was started.
    """
    if len(folders) < 2:
        raise BadInput("--compare needs at least two run folders")
    runs = [read_run(folder) for folder in folders]
    rows = _side_by_side(runs)
    return render(
        "comparison.html.j2",
        output or runs[0].folder.parent / "comparison.html",
        title=f"{len(runs)} runs compared",
        runs=runs,
        outcomes=_outcomes(runs),
        rate=_concepts_per_hour(runs),
        differences=_differences(runs),
        rows=rows,
        embedded=embed(p for row in rows for p in row["pictures"] if p is not None),
        charts=[c for c in (charts.validation_losses(runs), charts.gaps_closed(runs)) if c is not None],
    )
