"""Charts of several runs together."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from sdtune.report.charts.svg import DASHES, MARKERS, SERIES, Chart, add_legend, label_steps, make_chart, shorten
from sdtune.report.formatting import NOTHING, number, share
from sdtune.report.record import RunRecord


def _curves(
    runs: Sequence[RunRecord],
    title: str,
    caption: str,
    label: str,
    value: Callable[[dict[str, Any]], float | None],
    *,
    percent: bool,
) -> Chart | None:
    """One curve for each run, of a value of its validations; None where no run has it."""
    known = {run.folder: [(v["step"], y) for v in run.validations if (y := value(v)) is not None] for run in runs}
    if not any(known.values()):
        return None

    def draw(ax: Axes, narrow: bool) -> None:
        for i, run in enumerate(runs):
            if not known[run.folder]:
                continue
            x, y = zip(*known[run.folder], strict=True)
            k = i % len(SERIES)
            ax.plot(
                x,
                y,
                color=SERIES[k],
                linestyle=DASHES[k],
                marker=MARKERS[(i + i // len(SERIES)) % len(MARKERS)],
                markersize=5,
                label=shorten(run.name, 30),
            )
        if percent:
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylabel(label)
        label_steps(ax)
        add_legend(ax, narrow=narrow, columns=3)

    steps = sorted({step for points in known.values() for step, _ in points})
    cell = share if percent else number
    rows = [
        [str(step), *(NOTHING if (y := dict(known[r.folder]).get(step)) is None else cell(y) for r in runs)]
        for step in steps
    ]
    return make_chart(title, caption, draw, ["step", *(r.name for r in runs)], rows, height=3.4)


def validation_losses(runs: Sequence[RunRecord]) -> Chart | None:
    """Validation losses."""
    return _curves(
        runs,
        "Validation loss",
        "Lower is better. Only runs with the same pictures and the same model are comparable.",
        "loss",
        lambda v: float(v["loss"]),
        percent=False,
    )


def gaps_closed(runs: Sequence[RunRecord]) -> Chart | None:
    """Shares of the gap to the reference caption that were closed."""
    return _curves(
        runs,
        "Share of the gap closed",
        "0 % is the loss of each run before training, 100 % that of the reference caption.",
        "gap closed",
        lambda v: None if v.get("gap_closed") is None else float(v["gap_closed"]),
        percent=True,
    )
