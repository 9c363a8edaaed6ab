"""Charts as inline SVG, each in a wide and a narrow form, with the table behind it.

matplotlib draws with placeholder colours that are then replaced by the page's CSS variables, so that one drawing serves
light and dark. Lines differ in their strokes, not in their colour alone.
"""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sdtune.report.findings import SLOW
from sdtune.report.formatting import NOTHING, number, seconds, share, size
from sdtune.report.record import Rank, RunRecord

_THEME = {"ink": "#010203", "muted": "#020304", "grid": "#030405", "page": "#040506"}
_SERIES = [f"#05060{i}" for i in range(1, 7)]
_VARIABLES = {**{v: f"var(--{k})" for k, v in _THEME.items()}, **{c: f"var(--c{i})" for i, c in enumerate(_SERIES, 1)}}
_STROKES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9,
    "text.color": _THEME["ink"],
    "axes.labelcolor": _THEME["muted"],
    "axes.edgecolor": _THEME["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _THEME["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": _THEME["muted"],
    "ytick.color": _THEME["muted"],
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
}
_counter = itertools.count()


@dataclass(frozen=True)
class Chart:
    """A chart and what stands beside it."""

    title: str
    says: str
    wide: Markup
    narrow: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def _svg(draw: Callable[[Axes, bool], None], title: str, width: float, height: float, *, narrow: bool) -> Markup:
    """Draw one form; ids are made unique in the page, and nothing of matplotlib's style leaks out of the SVG."""
    prefix = f"c{next(_counter)}-"
    style: Any = {**_STYLE, "svg.hashsalt": prefix}
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        draw(figure.add_subplot(), narrow)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    return Markup(re.sub(r"\n\s*", "\n", svg))


def _chart(
    title: str,
    says: str,
    draw: Callable[[Axes, bool], None],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    height: float = 3.0,
) -> Chart:
    return Chart(
        title,
        says,
        _svg(draw, title, 8.4, height, narrow=False),
        _svg(draw, title, 4.1, height + 0.3, narrow=True),
        columns,
        rows,
    )


def _legend(ax: Axes, *, narrow: bool, columns: int = 3) -> None:
    handles, labels = ax.get_legend_handles_labels()
    ncols = 1 if narrow and columns < 4 else 2 if narrow else columns
    ax.figure.legend(handles, labels, loc="outside upper left", ncols=ncols, handlelength=2.4, columnspacing=1.4)


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _steps_axis(ax: Axes) -> None:
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def learning(run: RunRecord) -> Chart | None:
    """Validation loss, with what it is held against, and the raw loss behind it."""
    if not run.validations:
        return None
    steps, losses = [v["step"] for v in run.validations], [v["loss"] for v in run.validations]
    facts = run.finished or {}
    reference = facts.get("reference_loss")
    caption = run.asked("validation", "reference_caption") or ""
    levels = [*losses, *([reference] if reference is not None else [])]

    def draw(ax: Axes, narrow: bool) -> None:
        if len(run.steps) > 1:
            behind = ax.twinx()
            behind.plot(
                [s["step"] for s in run.steps],
                [s["loss"] for s in run.steps],
                color=_THEME["muted"],
                alpha=0.35,
                linewidth=0.8,
            )
            behind.axis("off")
            ax.set_zorder(behind.get_zorder() + 1)
            ax.plot([], [], color=_THEME["muted"], alpha=0.5, linewidth=0.8, label="raw loss, on a scale of its own")
        ax.plot(steps, losses, color=_SERIES[0], marker="o", markersize=5, label="validation loss")
        if reference is not None:
            label = f"best caption: “{_shorten(caption, 24 if narrow else 46)}”"
            ax.axhline(reference, color=_SERIES[1], linestyle=_STROKES[1], label=label)
        margin = 0.12 * ((max(levels) - min(levels)) or max(levels) or 1)
        ax.set_ylim(min(levels) - margin, max(levels) + margin)
        ax.set_ylabel("loss")
        _steps_axis(ax)
        _legend(ax, narrow=narrow)

    rows = [
        [str(v["step"]), number(v["loss"]), NOTHING if v.get("gap_closed") is None else share(v["gap_closed"])]
        for v in run.validations
    ]
    says = "The loss over the same pictures, timesteps and noise every time, so that it can be compared."
    if run.validations[-1].get("gap_closed") is not None:
        says += (
            f" The word has closed {share(run.validations[-1]['gap_closed'])} of the gap between the word it started "
            f"from and the best caption."
        )
    return _chart("Validation loss", says, draw, ["step", "validation loss", "gap closed"], rows, height=3.4)


PARTS = ("forward", "backward", "waiting and exchange", "rest")


def parts_of(step: dict[str, Any]) -> tuple[float, float, float, float]:
    """Seconds of a step by :data:`PARTS`."""
    known = (step.get("forward_s", 0.0), step.get("backward_s", 0.0), step.get("sync_s", 0.0))
    return (*known, max(0.0, step["step_s"] - sum(known)))


def _bins(run: RunRecord, most: int) -> list[tuple[float, float, list[float]]]:
    """(first step, last step, mean parts) of at most ``most`` groups of steps that follow each other."""
    per = -(-len(run.steps) // most)
    groups = [run.steps[i : i + per] for i in range(0, len(run.steps), per)]
    return [
        (g[0]["step"] - 0.5, g[-1]["step"] + 0.5, [fmean(x) for x in zip(*map(parts_of, g), strict=True)])
        for g in groups
    ]


def step_time(run: RunRecord) -> Chart | None:
    """Seconds of a step over the run, by what they went into."""
    if not run.steps:
        return None
    means = [fmean(x) for x in zip(*map(parts_of, run.steps), strict=True)]
    whole = sum(means)
    usual = sorted(s["step_s"] for s in run.steps)[int(0.98 * (len(run.steps) - 1))]
    longest = max(run.steps, key=lambda s: float(s["step_s"]))

    def draw(ax: Axes, narrow: bool) -> None:
        bins = _bins(run, 30 if narrow else 60)
        edges = [*(b[0] for b in bins), bins[-1][1]]
        colors = (_SERIES[0], _SERIES[1], _SERIES[2], _THEME["muted"])
        lower = [0.0] * len(edges)
        for i, (part, color, hatch) in enumerate(zip(PARTS, colors, (None, "//", None, None), strict=True)):
            if means[i] < 0.001 * whole:
                continue
            heights = [b[2][i] for b in bins]
            upper = [a + b for a, b in zip(lower, [*heights, heights[-1]], strict=True)]
            ax.fill_between(
                edges,
                lower,
                upper,
                step="post",
                facecolor=color,
                edgecolor=_THEME["page"],
                linewidth=0.6,
                hatch=hatch,
                label=f"{part} {share(means[i] / whole)}",
            )
            lower = upper
        ax.set_ylim(0, 1.25 * usual)
        ax.set_xlim(edges[0], edges[-1])
        ax.set_ylabel("seconds")
        ax.grid(visible=False, axis="x")
        _steps_axis(ax)
        _legend(ax, narrow=narrow, columns=4)

    rows = [[part, seconds(mean), share(mean / whole)] for part, mean in zip(PARTS, means, strict=True)]
    says = f"A step of rank 0 took {seconds(median(s['step_s'] for s in run.steps))} as a rule."
    if longest["step_s"] > 1.25 * usual:
        says += f" The longest, step {longest['step']}, took {seconds(longest['step_s'])} and is cut off here."
    return _chart("Where a step's time goes", says, draw, ["part of a step", "mean", "share"], rows)


def ranks(run: RunRecord) -> Chart | None:
    """Seconds that each rank computes; those that others wait for stand out."""
    if len(run.ranks) < 2:
        return None
    hosts = list(dict.fromkeys(r.host for r in run.ranks))
    usual = median(r.compute_s for r in run.ranks)

    def place(rank: Rank) -> float:
        same = [r.number for r in run.ranks if r.host == rank.host]
        return hosts.index(rank.host) + (
            0.0 if len(same) < 2 else 0.5 * (same.index(rank.number) / (len(same) - 1) - 0.5)
        )

    def draw(ax: Axes, narrow: bool) -> None:
        slow = [r for r in run.ranks if r.compute_s > SLOW * usual]
        fine = [r for r in run.ranks if r not in slow]
        ax.axvline(usual, color=_THEME["muted"], linestyle=_STROKES[1], linewidth=1, label=f"median {seconds(usual)}")
        ax.plot(
            [r.compute_s for r in fine], [place(r) for r in fine], "o", color=_SERIES[0], markersize=6, label="rank"
        )
        if slow:
            label = f"more than {100 * (SLOW - 1):.0f} % slower"
            ax.plot(
                [r.compute_s for r in slow], [place(r) for r in slow], "D", color=_SERIES[1], markersize=7, label=label
            )
            for r in slow:
                ax.annotate(
                    f"rank {r.number}",
                    (r.compute_s, place(r)),
                    (-8, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                )
        ax.set_yticks(range(len(hosts)), [_shorten(h, 14 if narrow else 30) for h in hosts])
        ax.set_ylim(len(hosts) - 0.5, -0.5)
        ax.set_xlim(0, 1.12 * max(r.compute_s for r in run.ranks))
        ax.set_xlabel("seconds of a step that the rank computes")
        ax.grid(visible=False, axis="y")
        _legend(ax, narrow=narrow)

    rows = [[str(r.number), r.host, seconds(r.compute_s), seconds(r.sync_s), size(r.peak_rss_bytes)] for r in run.ranks]
    return _chart(
        "Every rank",
        "A step lasts as long as its slowest rank: the others wait. Dots far to the right are what they wait for.",
        draw,
        ["rank", "host", "computes", "waits", "memory at most"],
        rows,
        height=min(9.0, 1.5 + 0.42 * len(hosts)),
    )


# --- several runs ---------------------------------------------------------------------------------------------------


def _curves(
    runs: Sequence[RunRecord],
    title: str,
    says: str,
    label: str,
    value: Callable[[dict[str, Any]], float | None],
    *,
    percent: bool,
) -> Chart | None:
    known = {run.folder: [(v["step"], y) for v in run.validations if (y := value(v)) is not None] for run in runs}
    if not any(known.values()):
        return None

    def draw(ax: Axes, narrow: bool) -> None:
        for i, run in enumerate(runs):
            if not known[run.folder]:
                continue
            x, y = zip(*known[run.folder], strict=True)
            k = i % len(_SERIES)
            ax.plot(
                x,
                y,
                color=_SERIES[k],
                linestyle=_STROKES[k],
                marker=_MARKERS[(i + i // len(_SERIES)) % len(_MARKERS)],
                markersize=5,
                label=_shorten(run.name, 30),
            )
        if percent:
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylabel(label)
        _steps_axis(ax)
        _legend(ax, narrow=narrow, columns=3)

    steps = sorted({step for points in known.values() for step, _ in points})
    cell = share if percent else number
    rows = [
        [str(step), *(NOTHING if (y := dict(known[r.folder]).get(step)) is None else cell(y) for r in runs)]
        for step in steps
    ]
    return _chart(title, says, draw, ["step", *(r.name for r in runs)], rows, height=3.4)


def losses_together(runs: Sequence[RunRecord]) -> Chart | None:
    """The validation losses of several runs."""
    return _curves(
        runs,
        "Validation loss",
        "Lower is better. Runs over the same pictures and model can be compared; others cannot.",
        "loss",
        lambda v: float(v["loss"]),
        percent=False,
    )


def gaps_together(runs: Sequence[RunRecord]) -> Chart | None:
    """How much of the way to the best caption each run has gone."""
    return _curves(
        runs,
        "Share of the gap closed",
        "0 % is the word that each run started from, 100 % the best caption.",
        "gap closed",
        lambda v: None if v.get("gap_closed") is None else float(v["gap_closed"]),
        percent=True,
    )
