"""Small copies of the training pictures, for the report."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps


def save_thumbnails(pictures: Sequence[Path], folder: Path, side: int = 512, most: int = 24) -> None:
    """Replace ``folder`` by copies of the first ``most`` pictures, upright and at most ``side`` pixels a side."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, path in enumerate(pictures[:most]):
        with Image.open(path) as opened:
            copy = ImageOps.exif_transpose(opened).convert("RGB")
        copy.thumbnail((side, side))
        copy.save(folder / f"{i:03d}.jpg", quality=92)
