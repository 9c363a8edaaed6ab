"""Charts of one run: validation loss, step time, and ranks."""

from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes

from sdtune.report.charts.svg import DASHES, SERIES, THEME, Chart, add_legend, label_steps, make_chart, shorten
from sdtune.report.findings import SLOW, slow_ranks
from sdtune.report.formatting import NOTHING, number, seconds, share, size
from sdtune.report.record import Rank, RunRecord


def validation_loss(run: RunRecord) -> Chart | None:
    """Validation loss, the loss of the reference caption, and the training loss in the background."""
    if not run.validations:
        return None
    steps, losses = [v["step"] for v in run.validations], [v["loss"] for v in run.validations]
    facts = run.finished or {}
    reference = facts.get("reference_loss")
    reference_caption = run.setting("validation", "reference_caption") or ""
    levels = [*losses, *([reference] if reference is not None else [])]

    def draw(ax: Axes, narrow: bool) -> None:
        if len(run.steps) > 1:
            background = ax.twinx()
            background.plot(
                [s["step"] for s in run.steps],
                [s["loss"] for s in run.steps],
                color=THEME["muted"],
                alpha=0.35,
                linewidth=0.8,
            )
            background.axis("off")
            ax.set_zorder(background.get_zorder() + 1)
            ax.plot([], [], color=THEME["muted"], alpha=0.5, linewidth=0.8, label="training loss, on its own scale")
        ax.plot(steps, losses, color=SERIES[0], marker="o", markersize=5, label="validation loss")
        if reference is not None:
            label = f"reference caption: \u201c{shorten(reference_caption, 20 if narrow else 42)}\u201d"
            ax.axhline(reference, color=SERIES[1], linestyle=DASHES[1], label=label)
        margin = 0.12 * ((max(levels) - min(levels)) or max(levels) or 1)
        ax.set_ylim(min(levels) - margin, max(levels) + margin)
        ax.set_ylabel("loss")
        label_steps(ax)
        add_legend(ax, narrow=narrow)

    rows = [
        [str(v["step"]), number(v["loss"]), NOTHING if v.get("gap_closed") is None else share(v["gap_closed"])]
        for v in run.validations
    ]
    caption = "Every validation uses the same pictures, timesteps and noise, so that its losses are comparable."
    if run.validations[-1].get("gap_closed") is not None:
        caption += (
            f" Training closed {share(run.validations[-1]['gap_closed'])} of the gap between the loss before it and "
            f"that of the reference caption."
        )
    return make_chart("Validation loss", caption, draw, ["step", "validation loss", "gap closed"], rows, height=3.4)


PARTS = ("forward", "backward", "exchange and waiting", "rest")
"""What a step's time is spent on."""


def parts_of(step: dict[str, Any]) -> tuple[float, float, float, float]:
    """Seconds of a step, by :data:`PARTS`."""
    known = (step.get("forward_s", 0.0), step.get("backward_s", 0.0), step.get("sync_s", 0.0))
    return (*known, max(0.0, step["step_s"] - sum(known)))


def _bins(run: RunRecord, most: int) -> list[tuple[float, float, list[float]]]:
    """(first step, last step, mean parts) of at most ``most`` groups of consecutive steps."""
    per = -(-len(run.steps) // most)
    groups = [run.steps[i : i + per] for i in range(0, len(run.steps), per)]
    return [
        (g[0]["step"] - 0.5, g[-1]["step"] + 0.5, [fmean(x) for x in zip(*map(parts_of, g), strict=True)])
        for g in groups
    ]


def step_time(run: RunRecord) -> Chart | None:
    """Step time over the run, by what it is spent on."""
    if not run.steps:
        return None
    means = [fmean(x) for x in zip(*map(parts_of, run.steps), strict=True)]
    whole = sum(means)
    high = sorted(s["step_s"] for s in run.steps)[int(0.98 * (len(run.steps) - 1))]
    longest = max(run.steps, key=lambda s: float(s["step_s"]))

    def draw(ax: Axes, narrow: bool) -> None:
        bins = _bins(run, 30 if narrow else 60)
        edges = [*(b[0] for b in bins), bins[-1][1]]
        colors = (SERIES[0], SERIES[1], SERIES[2], THEME["muted"])
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
                edgecolor=THEME["page"],
                linewidth=0.6,
                hatch=hatch,
                label=f"{part} {share(means[i] / whole)}",
            )
            lower = upper
        ax.set_ylim(0, 1.25 * high)
        ax.set_xlim(edges[0], edges[-1])
        ax.set_ylabel("seconds")
        ax.grid(visible=False, axis="x")
        label_steps(ax)
        add_legend(ax, narrow=narrow, columns=4)

    rows = [[part, seconds(mean), share(mean / whole)] for part, mean in zip(PARTS, means, strict=True)]
    caption = f"The median step time of rank 0 is {seconds(median(s['step_s'] for s in run.steps))}."
    if longest["step_s"] > 1.25 * high:
        caption += f" The longest step, {longest['step']}, took {seconds(longest['step_s'])} and is cut off here."
    return make_chart("Step time", caption, draw, ["part of a step", "mean time", "share"], rows)


def ranks(run: RunRecord) -> Chart | None:
    """Compute time of each rank; slow ranks, which the others wait for, are marked."""
    if len(run.ranks) < 2:
        return None
    hosts = list(dict.fromkeys(r.host for r in run.ranks))
    typical = median(r.compute_s for r in run.ranks)

    def height(rank: Rank) -> float:
        """A host has one line; its ranks spread around it."""
        same = [r.number for r in run.ranks if r.host == rank.host]
        return hosts.index(rank.host) + (
            0.0 if len(same) < 2 else 0.5 * (same.index(rank.number) / (len(same) - 1) - 0.5)
        )

    def draw(ax: Axes, narrow: bool) -> None:
        slow = slow_ranks(run.ranks)
        others = [r for r in run.ranks if r not in slow]
        ax.axvline(typical, color=THEME["muted"], linestyle=DASHES[1], linewidth=1, label=f"median {seconds(typical)}")
        ax.plot(
            [r.compute_s for r in others], [height(r) for r in others], "o", color=SERIES[0], markersize=6, label="rank"
        )
        if slow:
            label = f"more than {100 * (SLOW - 1):.0f} % slower"
            ax.plot(
                [r.compute_s for r in slow], [height(r) for r in slow], "D", color=SERIES[1], markersize=7, label=label
            )
            for r in slow:
                ax.annotate(
                    f"rank {r.number}",
                    (r.compute_s, height(r)),
                    (-8, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                )
        ax.set_yticks(range(len(hosts)), [shorten(h, 14 if narrow else 30) for h in hosts])
        ax.set_ylim(len(hosts) - 0.5, -0.5)
        ax.set_xlim(0, 1.12 * max(r.compute_s for r in run.ranks))
        ax.set_xlabel("compute time of a step, seconds")
        ax.grid(visible=False, axis="y")
        add_legend(ax, narrow=narrow)

    rows = [[str(r.number), r.host, seconds(r.compute_s), seconds(r.sync_s), size(r.peak_rss_bytes)] for r in run.ranks]
    return make_chart(
        "Ranks",
        "All ranks wait for the slowest one in every step. Ranks far to the right are the slow ones.",
        draw,
        ["rank", "host", "compute time", "exchange and waiting", "peak memory"],
        rows,
        height=min(9.0, 1.5 + 0.42 * len(hosts)),
    )
