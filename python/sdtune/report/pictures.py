"""Pictures in a page as data URIs, scaled down until all of them fit."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

SIDES = (512, 384, 256, 192, 128, 96)
TINY = 128
"""Pictures up to this side are embedded without loss, and enlarged without smoothing."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A picture in a page."""

    uri: str
    """Its data URI."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    tiny: bool
    """Enlarge it without smoothing."""


def _encode(path: Path, side: int) -> Embedded:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    image.thumbnail((side, side))
    tiny = max(image.size) <= TINY
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=tiny, quality=100 if tiny else 82)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = image.size
    return Embedded(uri=f"data:image/webp;base64,{data}", width=width, height=height, tiny=tiny)


def embed(paths: Iterable[Path], budget: int = 3_500_000) -> dict[Path, Embedded]:
    """Every picture, at the largest of :data:`SIDES` at which all of them need at most ``budget`` bytes."""
    wanted = list(dict.fromkeys(paths))
    for side in SIDES:
        embedded: dict[Path, Embedded] = {}
        room = budget
        for path in wanted:
            embedded[path] = _encode(path, side)
            room -= len(embedded[path].uri)
            if room < 0 and side != SIDES[-1]:
                break
        else:
            break
    return embedded
