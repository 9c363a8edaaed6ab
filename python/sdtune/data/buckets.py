"""Sizes of training pictures: one square for all, or a size for each that keeps its proportions."""

import math
from pathlib import Path

from sdtune.data.pictures import open_file
from sdtune.settings.data import BUCKET_STEP, DataArgs


def bucket_of(width: int, height: int, most_pixels: int) -> tuple[int, int]:
    """The size whose proportions come closest to those of a picture.

    Args:
        width: of the picture.
        height: of the picture.
        most_pixels: the size has at most so many.

    Returns:
        Width and height, multiples of ``BUCKET_STEP``. Of sizes with the same proportions, the largest.
    """
    sides = [BUCKET_STEP * n for n in range(1, most_pixels // BUCKET_STEP**2 + 1)]
    sizes = [(w, h) for w in sides for h in sides if w * h <= most_pixels]
    # the largest height for each width, and the other way round: smaller ones waste pixels
    widest = {w: max(h for v, h in sizes if v == w) for w in sides}
    tallest = {h: max(w for w, v in sizes if v == h) for h in sides}
    candidates = {*widest.items(), *((w, h) for h, w in tallest.items())}
    return min(candidates, key=lambda s: (abs(math.log(s[0] / s[1] * height / width)), -s[0] * s[1], s))


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height of a picture that stands upright, from its header."""
    with open_file(picture) as opened:
        orientation = opened.getexif().get(0x0112, 1)
        width, height = opened.size
    return (height, width) if orientation >= 5 else (width, height)  # 5 to 8 lie on their side


def training_size(picture: Path, data: DataArgs) -> tuple[int, int]:
    """Width and height that training gives a picture."""
    square = (data.resolution, data.resolution)
    return bucket_of(*size_of(picture), data.resolution**2) if data.aspect_ratio_buckets else square
