"""Contact sheets, many pictures with their captions in one image, and reduced copies of pictures."""

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps


def columns_of(count: int, most: int = 8) -> int:
    """Columns of a sheet of ``count`` pictures: one row if they fit, else rows of about the same length.

    ``most`` is the maximum.
    """
    return -(-count // -(-count // most))


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], columns: int, cell: int = 192
) -> Image.Image:
    """Lay out pictures in rows, each with up to three lines of caption below it.

    Args:
        pictures: at least one.
        captions: one for each picture.
        columns: pictures per row.
        cell: side in pixels that each picture is scaled to.

    Raises:
        ValueError: there is no picture, or the number of captions is different.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions do not make a sheet")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    gap, line, font = 8, 14, ImageFont.load_default(11)
    text_height = 3 * line + gap
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + text_height) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = gap + (i % columns) * (cell + gap), gap + (i // columns) * (cell + text_height)
        # pixels of small pictures stay visible, because smoothing would look like detail
        method = Image.Resampling.NEAREST if picture.width < cell else Image.Resampling.LANCZOS
        sheet.paste(picture.convert("RGB").resize((cell, cell), method), (x, y))
        for k, words in enumerate(textwrap.wrap(caption, max(8, cell // 6))[:3]):
            draw.text((x, y + cell + 2 + k * line), words, fill="black", font=font)
    return sheet


def save_small(pictures: Sequence[Path], folder: Path, side: int = 512, most: int = 24) -> None:
    """Save upright JPEG copies of the first ``most`` pictures, at most ``side`` pixels per side, to ``folder``.

    An existing folder is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, path in enumerate(pictures[:most]):
        with Image.open(path) as opened:
            copy = ImageOps.exif_transpose(opened).convert("RGB")
        copy.thumbnail((side, side))
        copy.save(folder / f"{i:03d}.jpg", quality=92)
