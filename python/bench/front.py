"""The front of time against similarity, from the figures that ``bench/generation.py --json`` wrote.

    python bench/front.py sd15.json toyworld.json --plot ../docs/pictures-front.svg

Seconds are those of the first file, similarity is that of the second, or of the first if there is one: with the random
weights of ``bench/sd15.py``, similarity says nothing. A point is dominated if another one is at least as fast and at
least as similar, and better in one of both; dominated points are in the plot, not in the table.
"""

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point with its figures."""

    name: str
    """What it does."""
    seconds: float
    """Per picture."""
    speedup: float
    """Of the baseline's seconds, in the same run."""
    psnr: float
    """dB, the median over the pictures."""
    ssim: float
    """The median over the pictures."""


def rows_of(times: dict[str, Any], similar: dict[str, Any]) -> list[Row]:
    """The points that both have. A picture without any difference counts as 100 dB."""
    known = {point["name"]: point for point in similar["points"]}
    baseline = next((p["seconds"] for p in times["points"] if p["name"] == times["baseline"]), float("nan"))
    return [
        Row(
            name=point["name"],
            seconds=point["seconds"],
            speedup=baseline / point["seconds"],
            psnr=min(100.0, median(known[point["name"]]["psnr"])),
            ssim=median(known[point["name"]]["ssim"]),
        )
        for point in times["points"]
        if point["name"] in known
    ]


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The points that no other one dominates, the fastest last."""
    left = [
        row
        for row in rows
        if not any(
            other.seconds <= row.seconds
            and other.psnr >= row.psnr
            and (other.seconds < row.seconds or other.psnr > row.psnr)
            for other in rows
        )
    ]
    return sorted(left, key=lambda row: -row.seconds)


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = ["| | s | speed-up | PSNR | SSIM |", "|---|---|---|---|---|"]
    lines += [f"| {r.name} | {r.seconds:.2f} | {r.speedup:.2f} x | {r.psnr:.1f} dB | {r.ssim:.3f} |" for r in rows]
    return "\n".join(lines)


def plot(rows: Sequence[Row], file: Path, what: str) -> None:
    """All points, the front as a line with names, as SVG. What has no difference is left out."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "sdtune"
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in rows if row.psnr < 100]
    front = pareto(shown)
    axes.plot([r.speedup for r in shown], [r.psnr for r in shown], "o", color="0.75", markersize=4)
    axes.plot([r.speedup for r in front], [r.psnr for r in front], "o-", color="tab:blue", markersize=5)
    for number, row in enumerate(front):
        axes.annotate(
            row.name, (row.speedup, row.psnr), xytext=(6, 4 if number % 2 else -10), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip
    axes.set_xlabel("speed-up to the usual OpenVINO flow")
    axes.set_ylabel("PSNR to the float32 picture of 25 steps, dB (median)")
    axes.set_title("\n".join(textwrap.wrap(what, 100)), fontsize=9)
    axes.grid(color="0.9")
    axes.margins(x=0.15)
    figure.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    """Print the front, and plot all points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=Path, help="figures whose seconds count")
    parser.add_argument("similarity", type=Path, nargs="?", help="figures whose similarity counts (default the same)")
    parser.add_argument("--plot", type=Path, help="SVG to write")
    args = parser.parse_args()
    times, similar = (json.loads((p or args.seconds).read_text()) for p in (args.seconds, args.similarity))
    rows = rows_of(times, similar)
    print(f"{times['what']}; similarity: {similar['what']}\n\n{table(pareto(rows))}")
    if args.plot:
        plot(rows, args.plot, times["what"])


if __name__ == "__main__":
    main()
