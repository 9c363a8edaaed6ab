"""Copies of the training pictures as the model sees them, for the report."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sdtune.data.buckets import training_size
from sdtune.data.pictures import fit_picture, open_picture
from sdtune.settings.data import DataArgs


def save_thumbnails(pictures: Sequence[Path], folder: Path, data: DataArgs, side: int = 512, most: int = 24) -> None:
    """Replace ``folder`` by copies of the first ``most`` pictures, at most ``side`` pixels a side.

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
        cut = data.center_crop or data.aspect_ratio_buckets
        copy = fit_picture(open_picture(path, data.background), training_size(path, data), cut)
        copy.thumbnail((side, side))
        copy.save(folder / f"{i:03d}.png")
