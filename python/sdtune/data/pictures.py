"""Training pictures: listing a folder, and decoding a file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from sdtune.errors import BadInput
from sdtune.sizes import sizes
from sdtune.text import named
from standalone import picture_files

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Those of :data:`standalone.picture_files.SUFFIXES`; no other decoder sees a file, whatever its name is."""
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_MOST_BYTES = 1_000_000_000
"""What reading one picture may take: 125 megapixels, 83 in CMYK, 62 with transparent parts, in 16 bits, or in WebP."""


def list_pictures(folder: str | Path, setting: str = "data.path") -> list[Path]:
    """List the pictures of a folder, sorted by name, so that their numbers are the same on all hosts.

    Hidden files and caption files are left out. :func:`picture_problems` says which of them cannot be read.

    Args:
        folder: where the pictures are.
        setting: that names the folder, for errors.

    Raises:
        BadInput: the folder is missing or empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        why = "is a file" if folder.exists() else "does not exist"
        raise BadInput(f"{setting}: the picture folder {folder} {why}")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and not picture_files.is_caption(p.name))
    if not files:
        raise BadInput(f"{setting}: the picture folder {folder} is empty; put pictures in it")
    return files


def picture_problems(pictures: Iterable[Path]) -> list[str]:
    """What is wrong with pictures, one line for each that training cannot use; decodes them all."""
    return [problem for path in pictures if (problem := _problem(path))]


def open_file(path: Path) -> Image.Image:
    """Open a file with the decoder of one of the formats that are used, and of no other."""
    return Image.open(path, formats=_FORMATS)


def _problem(path: Path) -> str:
    if wrong := picture_files.problem(path):
        return f"{named(path)} {wrong}"
    try:
        with open_file(path) as image:
            if problem := _too_large(image):
                return f"{path} {problem}"
            image.load()  # verify() does not find truncated files
    # Pillow's decoders raise all of these on damaged files
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        return _unreadable(path, error)
    except (UnidentifiedImageError, Image.DecompressionBombError, MemoryError) as error:
        return _unreadable(path, error)
    return ""


def _is_transparent(image: Image.Image) -> bool:
    """Whether a picture can have transparent parts, by its header."""
    return image.mode in _TRANSPARENT or "transparency" in image.info


def bytes_of_pixel(image: Image.Image) -> int:
    """What reading a picture takes at most, in bytes of a pixel."""
    if _is_transparent(image) or image.mode in _GREY_16 or image.format == "WEBP":
        return 16  # two copies more: to put it on a background, to scale it to 8 bits, in the decoder
    return 12 if image.mode == "CMYK" else 8  # copies of four bytes: as decoded, as RGB, and in between, rotated


def _too_large(image: Image.Image) -> str:
    """What is wrong with a picture whose pixels, as :func:`open_picture` has them, take too much memory.

    A picture of a palette with one color is a small file, whatever its size.
    """
    needed = image.width * image.height * bytes_of_pixel(image)
    if needed <= _MOST_BYTES:
        return ""
    side = int((_MOST_BYTES / needed) ** 0.5 * 100)
    return (
        f"has {image.width} x {image.height} pixels{' and transparent parts' if _is_transparent(image) else ''}, which "
        f"take {sizes(needed)[0]} of memory; scale it to {side} % or less"
    )


def _unreadable(path: Path, error: BaseException) -> str:
    why = " ".join(str(error).split()) or type(error).__name__
    return f"{path} cannot be read as a picture ({why}); replace or remove it"


def _hidden_color(image: Image.Image, path: Path) -> int | tuple[int, ...] | None:
    """The color that a PNG declares transparent, as its pixels have it; None if there is none, or it has a palette.

    Pillow gives it in the bits of the file, and the pixels in 8 bits, but for grey ones of 16 bits and of one.
    """
    color = image.info.get("transparency")
    if image.format != "PNG" or image.mode == "P" or not isinstance(color, int | tuple):
        return None
    if image.mode in (*_GREY_16, "1"):
        return color
    with path.open("rb") as file:
        bits = file.read(25)[24]  # of IHDR, which comes first

    def scaled(level: int) -> int:
        return level >> 8 if bits == 16 else level * 255 // (2**bits - 1) if bits in (2, 4) else level

    return tuple(map(scaled, color)) if isinstance(color, tuple) else scaled(color)


def open_picture(path: Path, background: str = "white") -> Image.Image:
    """Read a picture as RGB: rotated according to its EXIF orientation, 16 bits scaled to 8, and opaque.

    Args:
        path: the file.
        background: color behind transparent parts; Pillow's own conversion would show the colors hidden there.
    """
    with open_file(path) as opened:
        hidden = _hidden_color(opened, path)
        image = ImageOps.exif_transpose(opened)
    if image.mode in _GREY_16:  # convert() would clip to 255, which is almost black in 16 bits
        grey = np.asarray(image).astype(np.uint32).clip(0, 65_535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
        if hidden is not None:
            image.putalpha(Image.fromarray(np.where(grey == hidden, 0, 255).astype(np.uint8)))
    elif hidden is not None:
        image = image.convert("L") if image.mode == "1" else image  # one bit has no place for it
        image.info["transparency"] = hidden
    if _is_transparent(image):
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(behind, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def fit_picture(image: Image.Image, size: tuple[int, int], center_crop: bool) -> Image.Image:
    """The picture that the model sees, resized bicubically.

    Args:
        image: of any size.
        size: width and height of the result in pixels.
        center_crop: cut out the largest centred part of these proportions before resizing; otherwise they change.
    """
    if center_crop:
        part = min(image.width / size[0], image.height / size[1])
        width, height = round(part * size[0]), round(part * size[1])
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return image.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True, kw_only=True)
class View:
    """How a picture was cropped and resized; all numbers are pixels, vertical before horizontal."""

    original: tuple[int, int]
    """Height and width of the picture."""
    crop: tuple[int, int]
    """Top and left of the part that was kept, in the resized picture."""
    target: tuple[int, int]
    """Height and width of the result."""


def view_of(original: tuple[int, int], size: tuple[int, int], center_crop: bool) -> View:
    """What :func:`fit_picture` does to a picture; both sizes are width and height."""
    top = left = 0
    if center_crop:
        part = min(original[0] / size[0], original[1] / size[1])
        left, top = (round((o / part - s) / 2) for o, s in zip(original, size, strict=True))
    return View(original=(original[1], original[0]), crop=(top, left), target=(size[1], size[0]))


def load_picture(path: Path, size: tuple[int, int], center_crop: bool, background: str = "white") -> torch.Tensor:
    """Read a picture as the model sees it; see :func:`open_picture` and :func:`fit_picture`.

    Returns:
        float32 [3, height, width] in [-1, 1].
    """
    image = fit_picture(open_picture(path, background), size, center_crop)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(127.5).sub_(1.0)
