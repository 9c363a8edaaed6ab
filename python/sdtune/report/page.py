"""The pages: what the templates are given, and where the result goes."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sdtune.errors import BadInput
from sdtune.files import write_atomically
from sdtune.launch.run_folder import Run
from sdtune.report import charts
from sdtune.report.findings import findings, slow_ranks
from sdtune.report.formatting import NOTHING, bandwidth, number, seconds, share, size
from sdtune.report.pictures import embed
from sdtune.report.record import Drawn, RunRecord, read_run

MOST_BYTES = 5_000_000
_ROWS, _DRAWN = 6, 48


def _keep_units(value: Any) -> Any:
    """No line break between a figure and its unit."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return re.sub(r"(?<=\d) (?=(?:%|ms|s|min|h|B|kB|MB|GB|TB)(?!\w))", "\N{NO-BREAK SPACE}", value)
    return value


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sdtune.report"),
        autoescape=True,  # names, prompts and captions are whatever a user typed
        undefined=StrictUndefined,
        finalize=_keep_units,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, seconds=seconds, share=share, size=size, bandwidth=bandwidth)
    environment.globals["made"] = datetime.now(UTC)
    environment.filters["moment"] = lambda t: datetime.fromtimestamp(t, UTC).strftime("%-d %B %Y, %H:%M UTC")
    return environment


def _render(template: str, output: Path, **context: Any) -> Path:
    text = _environment().get_template(template).render(**context)
    if len(text.encode()) > MOST_BYTES:
        raise BadInput(f"{output} would take {size(len(text.encode()))}; draw fewer pictures, or compare fewer runs")
    write_atomically(output, text)
    return output


def spread_out(items: Sequence[int], most: int) -> list[int]:
    """The first, the last, and as many between, evenly, as make ``most``."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """The figures at the top: (value, what it is, more about it)."""
    tiles = []
    last = run.validations[-1] if run.validations else None
    if last is not None:
        loss = f"validation loss {number(run.validations[0]['loss'])} → {number(last['loss'])}"
        if last.get("gap_closed") is not None:
            tiles.append((share(last["gap_closed"]), "of the gap to the best caption closed", loss))
        else:
            tiles.append((number(last["loss"]), "validation loss", f"{number(run.validations[0]['loss'])} before"))
    if run.steps:
        usual = median(s["step_s"] for s in run.steps)
        pictures = run.start["global_batch"] / usual
        tiles.append((seconds(usual), "a step, as a rule", f"{pictures:.3g} pictures a second, {len(run.steps)} steps"))
    world = run.start["world_size"]
    hosts = len(run.hosts) or 1
    threads = run.start.get("threads_per_rank")
    tiles.append(
        (
            f"{world} {'rank' if world == 1 else 'ranks'}",
            f"on {hosts} {'host' if hosts == 1 else 'hosts'}",
            f"{threads} {'thread' if threads == 1 else 'threads'} each, {run.start['global_batch']} pictures a step",
        )
    )
    if world > 1 and run.steps:
        total = sum(s["sync_bytes"] for s in run.steps)
        tiles.append((size(run.steps[-1]["sync_bytes"]), "exchanged a step", f"{size(total)} in the whole run"))
    if run.finished is not None:
        tiles.append((seconds(run.finished["seconds"]), "from start to end", "with loading, validation and pictures"))
    return tiles


def _validation_rows(run: RunRecord) -> list[dict[str, Any]]:
    last = run.finished["steps"] if run.finished else None
    rows = []
    for step in spread_out(list(run.validation), _ROWS):
        name = "Before" if step == 0 else "After" if step == last else "While learning"
        rows.append({"name": name, "step": step, "pictures": run.validation[step]})
    return rows


def _by_prompt(images: list[Drawn]) -> dict[str, list[Drawn]]:
    found: dict[str, list[Drawn]] = {}
    for image in images:
        found.setdefault(image.prompt, []).append(image)
    return found


def _alike(hosts: list[dict[str, Any]]) -> list[tuple[list[str], dict[str, Any]]]:
    """Hosts that differ in nothing but their names and the numbers of their ranks, together: (names, the first)."""
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


def _settings(run: RunRecord) -> list[tuple[str, str]]:
    """The job as lines of section.key and value."""
    flat = []
    for key, value in run.job.items():
        if isinstance(value, dict):
            flat += [(f"{key}.{k}", _plain(v)) for k, v in value.items()]
        else:
            flat.append((key, _plain(value)))
    return flat


def _plain(value: Any) -> str:
    return (
        NOTHING
        if value is None
        else value
        if isinstance(value, str)
        else str(yaml.safe_dump(value)).removesuffix("...\n").strip()
    )


def _repeat(run: RunRecord) -> str:
    """What to type to do the run again."""
    if (run.folder / "launch.sh").is_file():
        return f"cd {run.folder}\n./launch.sh --overwrite"
    return "python textual_inversion.py --job job.yaml   # with the settings below"


def write_report(folder: str | Path, output: Path | None = None) -> Path:
    """Make the page of one run; it goes to ``report.html`` in the folder unless ``output`` says otherwise.

    Raises:
        BadInput: the folder holds no run that has begun, or its page would be too large to send.
    """
    run = read_run(folder)
    rows = _validation_rows(run)
    drawn = run.images[:_DRAWN]
    shown = [*run.concept, *(p for row in rows for p in row["pictures"].values()), *(d.path for d in drawn)]
    slow = {r.number for r in slow_ranks(run.ranks)}
    return _render(
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
        charts=[c for c in (charts.learning(run), charts.step_time(run), charts.ranks(run)) if c is not None],
        slow=slow,
        hosts=_alike(run.hosts),
        settings=_settings(run),
        repeat=_repeat(run),
        precision={"no": "in float32"}.get(run.start["mixed_precision"], f"in {run.start['mixed_precision']}"),
    )


def _differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs."""
    jobs = [dict(_settings(run)) for run in runs]
    keys = dict.fromkeys(k for job in jobs for k in job)
    return [
        (key, values)
        for key in keys
        if key not in ("run_name", "run_dir", "overwrite")
        and len(set(values := [job.get(key, NOTHING) for job in jobs])) > 1
    ]


def _outcomes(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """What came out of each run."""

    def last(run: RunRecord, key: str) -> float | None:
        return run.validations[-1].get(key) if run.validations else None

    lines: list[tuple[str, list[str]]] = [
        ("validation loss at the end", [NOTHING if (x := last(r, "loss")) is None else number(x) for r in runs]),
        ("gap closed", [NOTHING if (x := last(r, "gap_closed")) is None else share(x) for r in runs]),
        ("steps", [str(r.steps[-1]["step"]) if r.steps else NOTHING for r in runs]),
        ("a step", [seconds(median(s["step_s"] for s in r.steps)) if r.steps else NOTHING for r in runs]),
        ("ranks", [str(r.start["world_size"]) for r in runs]),
        ("from start to end", [seconds(r.finished["seconds"]) if r.finished else "not finished" for r in runs]),
    ]
    return lines


def _side_by_side(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Pictures of one prompt and seed, one of each run: those of the last validation, then those drawn afterwards."""
    wanted: dict[tuple[str, str], dict[Path, Path]] = {}
    for run in runs:
        prompt = run.asked("validation", "prompt") or ""
        if run.validation:
            for seed, path in run.validation[max(run.validation)].items():
                wanted.setdefault((f"{prompt} (PyTorch, while training)", str(seed)), {})[run.folder] = path
    for run in runs:
        for image in run.images:
            wanted.setdefault((f"{image.prompt} ({image.how})", image.seed), {})[run.folder] = image.path
    lines = [
        {"prompt": prompt, "seed": seed, "pictures": [found.get(run.folder) for run in runs]}
        for (prompt, seed), found in wanted.items()
    ]
    return lines[: max(2, 2 * _DRAWN // len(runs))]


def write_comparison(folders: Sequence[str | Path], output: Path | None = None) -> Path:
    """Make the page that holds several runs against each other: ``comparison.html`` beside the first, or ``output``.

    Raises:
        BadInput: fewer than two runs, or a folder holds none that has begun.
    """
    if len(folders) < 2:
        raise BadInput("--compare needs at least two run folders")
    runs = [read_run(folder) for folder in folders]
    lines = _side_by_side(runs)
    return _render(
        "comparison.html.j2",
        output or runs[0].folder.parent / "comparison.html",
        title=f"{len(runs)} runs compared",
        runs=runs,
        outcomes=_outcomes(runs),
        differences=_differences(runs),
        lines=lines,
        embedded=embed(p for line in lines for p in line["pictures"] if p is not None),
        charts=[c for c in (charts.losses_together(runs), charts.gaps_together(runs)) if c is not None],
    )
