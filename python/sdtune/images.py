"""Contact sheets: many pictures on one, each with its caption."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


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
