"""Training pictures: listing a folder, decoding a file."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from sdtune.data.caption_files import is_caption_file
from sdtune.errors import BadInput

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_pictures(folder: str | Path) -> list[Path]:
    """List the pictures of a folder, sorted by name, so that their numbers are the same on all hosts.

    Hidden files and caption files are left out.

    Raises:
        BadInput: the folder is missing or empty, or something in it is not a picture that Pillow can read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"data.path: the picture folder {folder} does not exist")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and not is_caption_file(p))
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


def load_picture(path: Path, size: tuple[int, int], center_crop: bool) -> torch.Tensor:
    """Read a picture, rotated according to its EXIF orientation.

    Args:
        path: the file.
        size: width and height of the result in pixels.
        center_crop: cut out the largest centred part of these proportions before resizing; otherwise they change.

    Returns:
        float32 [3, height, width] in [-1, 1], resized bicubically.
    """
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if center_crop:
        part = min(image.width / size[0], image.height / size[1])
        width, height = round(part * size[0]), round(part * size[1])
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    image = image.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(127.5).sub_(1.0)
