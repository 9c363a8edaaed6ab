"""Copies of the training pictures as the model sees them, for the report."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sdtune.data.pictures import fit_picture, open_picture
from sdtune.settings.data import DataArgs


def save_thumbnails(pictures: Sequence[Path], folder: Path, data: DataArgs, side: int = 512, most: int = 24) -> None:
    """Replace ``folder`` by copies of the first ``most`` pictures, as squares of at most ``side`` pixels.

    Args:
        pictures: files of the pictures.
        folder: ``concept/`` of the run.
        data: how training resizes and composites them.
        side: largest side of a copy, in pixels.
        most: most copies.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, path in enumerate(pictures[:most]):
        copy = fit_picture(open_picture(path, data.background), data.resolution, data.center_crop)
        copy.thumbnail((side, side))
        copy.save(folder / f"{i:03d}.png")
