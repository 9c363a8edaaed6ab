"""Numbers as text, with a useful number of digits and their units."""

import math

NOTHING = "\N{EN DASH}"


def number(value: float) -> str:
    """A loss or a rate, with four significant digits."""
    return f"{value:.4g}"


def share(value: float) -> str:
    """A share, in percent."""
    return f"{100 * value:.1f} %" if 0 < abs(value) < 0.1 else f"{100 * value:.0f} %"


def seconds(value: float) -> str:
    """A duration, in a unit from milliseconds to hours."""
    if not math.isfinite(value):  # of a file that somebody changed
        return NOTHING
    if value < 0.9995:
        return f"{1000 * value:.1f} ms" if value < 0.00995 else f"{1000 * value:.0f} ms"
    if value < 120:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """Bytes, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def bandwidth(mbit: int | None) -> str:
    """Speed of a network link."""
    if mbit is None:
        return NOTHING
    return f"{mbit / 1000:g} Gbit/s" if mbit >= 1000 else f"{mbit} Mbit/s"
