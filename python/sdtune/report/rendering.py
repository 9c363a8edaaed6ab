"""Rendering a page: the Jinja2 environment, its filters, and the file."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sdtune.errors import BadInput
from sdtune.files import write_atomically
from sdtune.report.formatting import bandwidth, number, seconds, share, size

MOST_BYTES = 5_000_000
"""A larger page is refused: many mail servers would too."""


def _keep_units(value: Any) -> Any:
    """No line break between a number and its unit."""
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


def render(template: str, output: Path, **context: Any) -> Path:
    """Render a template into ``output``.

    Raises:
        BadInput: the page is larger than :data:`MOST_BYTES`.
    """
    text = _environment().get_template(template).render(**context)
    if len(text.encode()) > MOST_BYTES:
        raise BadInput(f"{output} would take {size(len(text.encode()))}; draw fewer pictures, or compare fewer runs")
    write_atomically(output, text)
    return output
