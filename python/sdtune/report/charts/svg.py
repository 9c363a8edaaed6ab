"""Drawing a chart as inline SVG, in a wide and in a narrow form, with the table of its numbers.

matplotlib draws with placeholder colours, which are then replaced by the CSS variables of the page, so that one drawing
serves the light and the dark scheme. Lines differ in their dash pattern too, not in their colour alone.
"""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

THEME = {"ink": "#010203", "muted": "#020304", "grid": "#030405", "page": "#040506"}
SERIES = [f"#05060{i}" for i in range(1, 7)]
_VARIABLES = {**{v: f"var(--{k})" for k, v in THEME.items()}, **{c: f"var(--c{i})" for i, c in enumerate(SERIES, 1)}}
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9,
    "text.color": THEME["ink"],
    "axes.labelcolor": THEME["muted"],
    "axes.edgecolor": THEME["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": THEME["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": THEME["muted"],
    "ytick.color": THEME["muted"],
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
}
_counter = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, and the text and table beside it."""

    title: str
    """Heading."""
    caption: str
    """One or two sentences below the heading."""
    wide: Markup
    """SVG for wide screens and for print."""
    narrow: Markup
    """SVG for narrow screens."""
    columns: Sequence[str]
    """Headings of the table."""
    rows: Sequence[Sequence[str]]
    """The table: the numbers that the chart shows."""


def _svg(draw: Callable[[Axes, bool], None], title: str, width: float, height: float, *, narrow: bool) -> Markup:
    """Draw one form. Its ids are unique in the page; matplotlib's style sheet, which affects all of it, is removed."""
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


def make_chart(
    title: str,
    caption: str,
    draw: Callable[[Axes, bool], None],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    height: float = 3.0,
) -> Chart:
    """Draw both forms of a chart.

    Args:
        title: heading.
        caption: text below the heading.
        draw: draws on the axes that it gets; the second argument tells whether the form is narrow.
        columns: headings of the table.
        rows: the table.
        height: of the wide form in inches.
    """
    return Chart(
        title=title,
        caption=caption,
        wide=_svg(draw, title, 8.4, height, narrow=False),
        narrow=_svg(draw, title, 4.1, height + 0.3, narrow=True),
        columns=columns,
        rows=rows,
    )


def add_legend(ax: Axes, *, narrow: bool, columns: int = 3) -> None:
    """Put a legend above the axes, in fewer columns where the chart is narrow."""
    handles, labels = ax.get_legend_handles_labels()
    ncols = 1 if narrow and columns < 4 else 2 if narrow else columns
    ax.figure.legend(handles, labels, loc="outside upper left", ncols=ncols, handlelength=2.4, columnspacing=1.4)


def shorten(text: str, most: int) -> str:
    """At most ``most`` characters of the text, with an ellipsis where some are left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def label_steps(ax: Axes) -> None:
    """Label the horizontal axis with whole optimizer steps."""
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
