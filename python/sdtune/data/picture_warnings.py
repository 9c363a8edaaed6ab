"""What a user should know of pictures that can be used: animations, sizes that do not fit, duplicates, empty ones."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from sdtune.data.buckets import training_size
from sdtune.data.pictures import open_file, open_picture
from sdtune.settings.data import DataArgs

_SQUEEZED = 1.5
"""Aspect ratio from which on resizing to a square is reported."""
_CUT = 0.5
"""Share of a picture from which on cutting it off is reported."""


def picture_warnings(pictures: Sequence[Path], data: DataArgs) -> list[str]:
    """Warnings for the user.

    Args:
        pictures: files without problems.
        data: how training resizes and composites them.
    """
    found: list[str] = []
    seen: dict[str, str] = {}
    for path in pictures:
        with open_file(path) as image:
            # a telephone's JPEG holds further views of the same picture
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
        if frames > 1:
            found.append(f"{path.name} is an animation of {frames} frames; only the first one is used")
        upright = open_picture(path, data.background)
        found += _size_warnings(path.name, upright.size, training_size(path, data), data)
        extrema = cast(tuple[tuple[int, int], ...], upright.getextrema())  # of each band, since it has several
        if all(low == high for low, high in extrema):
            color = "#" + "".join(f"{low:02x}" for low, _ in extrema)
            found.append(
                f"{path.name} is of one color, {color}: it is empty, wholly transparent, or has the color of its "
                f"background (data.background: {data.background}); remove it, or choose another background"
            )
        digest = _digest(upright)
        if digest in seen:
            found.append(f"{path.name} shows the same as {seen[digest]}, which so counts twice; remove one")
        seen.setdefault(digest, path.name)
    return found


def _digest(image: Image.Image) -> str:
    """A hash of the pixels, taken in strips: all at once they would be in memory twice."""
    digest = hashlib.sha256(repr(image.size).encode())
    for top in range(0, image.height, 256):
        digest.update(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes())
    return digest.hexdigest()


def _size_warnings(name: str, size: tuple[int, int], target: tuple[int, int], data: DataArgs) -> Iterator[str]:
    (width, height), ratio = size, max(size) / min(size)
    scale = min(width / target[0], height / target[1])
    lost = 1 - scale * target[0] * scale * target[1] / (width * height)
    if data.center_crop or data.aspect_ratio_buckets:
        if lost >= _CUT:
            setting = "aspect_ratio_buckets" if data.aspect_ratio_buckets else "center_crop"
            yield f"of {name}, {width} x {height} pixels, {setting} cuts {100 * lost:.0f} % off"
    elif ratio >= _SQUEEZED:
        yield (
            f"{name}, {width} x {height} pixels, is squeezed to a square, which distorts it {ratio:.1f} times; crop "
            f"it, or set center_crop"
        )
    if scale < 1:
        yield (
            f"{name}, {width} x {height} pixels, is enlarged to {target[0]} x {target[1]}; use a larger picture, or "
            f"a lower resolution"
        )
