"""Pictures to look at: contact sheets, many pictures on one with their captions, and small copies."""

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps


def columns_of(count: int, most: int = 8) -> int:
    """Columns of a sheet for groups of ``count`` pictures: a row each, or a few rows of about the same length."""
    return -(-count // -(-count // most))


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], columns: int, cell: int = 192
) -> Image.Image:
    """Lay pictures out in rows, each scaled to ``cell`` x ``cell`` pixels over up to three lines of caption.

    Raises:
        ValueError: there is no picture, or not one caption for each.
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
        # enlarged small pictures keep their pixels, so that nobody takes smoothing for detail
        method = Image.Resampling.NEAREST if picture.width < cell else Image.Resampling.LANCZOS
        sheet.paste(picture.convert("RGB").resize((cell, cell), method), (x, y))
        for k, words in enumerate(textwrap.wrap(caption, max(8, cell // 6))[:3]):
            draw.text((x, y + cell + 2 + k * line), words, fill="black", font=font)
    return sheet


def save_small(pictures: Sequence[Path], folder: Path, side: int = 512, most: int = 24) -> None:
    """Copies of the first ``most`` pictures, upright and at most ``side`` pixels a side; ``folder`` is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, path in enumerate(pictures[:most]):
        with Image.open(path) as opened:
            copy = ImageOps.exif_transpose(opened).convert("RGB")
        copy.thumbnail((side, side))
        copy.save(folder / f"{i:03d}.jpg", quality=92)
