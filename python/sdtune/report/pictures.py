"""Pictures inside a page: data URIs, scaled down until all of them fit."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

SIDES = (512, 384, 256, 192, 128, 96)
TINY = 128
"""Pictures up to so many pixels stay as they are, and the page shows their pixels."""


@dataclass(frozen=True)
class Embedded:
    """A picture in a page."""

    uri: str
    width: int
    height: int
    tiny: bool


def _encode(path: Path, side: int) -> Embedded:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    image.thumbnail((side, side))
    tiny = max(image.size) <= TINY
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=tiny, quality=100 if tiny else 82)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Embedded(f"data:image/webp;base64,{data}", *image.size, tiny=max(image.size) <= TINY)


def embed(paths: Iterable[Path], budget: int = 3_500_000) -> dict[Path, Embedded]:
    """Every picture at the largest of :data:`SIDES` at which all together take at most ``budget`` bytes of the page."""
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
