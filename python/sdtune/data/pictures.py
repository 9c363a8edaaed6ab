"""Training pictures: listing a folder, decoding a file."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from sdtune.errors import BadInput

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_pictures(folder: str | Path) -> list[Path]:
    """List the files of a folder, sorted by name, so that their numbers are the same on all hosts; no hidden files.

    Raises:
        BadInput: the folder is missing or empty, or something in it is not a picture that Pillow can read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"data.path: the picture folder {folder} does not exist")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if not files:
        raise BadInput(f"data.path: the picture folder {folder} is empty; put pictures of the concept in it")
    for path in files:
        if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
            raise BadInput(f"data.path: {path} is no picture ({', '.join(IMAGE_SUFFIXES)}); move it out of the folder")
        try:
            with Image.open(path) as image:
                image.load()  # verify() does not find truncated files
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadInput(f"data.path: {path} cannot be read as a picture ({error}); replace or remove it") from None
    return files


def load_picture(path: Path, resolution: int, center_crop: bool) -> torch.Tensor:
    """Read a picture, rotated according to its EXIF orientation.

    Args:
        path: the file.
        resolution: side of the result in pixels.
        center_crop: cut out the largest centred square before resizing; otherwise the aspect ratio changes.

    Returns:
        float32 [3, resolution, resolution] in [-1, 1], resized bicubically.
    """
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if center_crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    image = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(127.5).sub_(1.0)
