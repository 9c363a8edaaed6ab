"""Generated images as files and side by side: PNG metadata, contact sheets, and how similar images are."""

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin


def encode_png(image: Image.Image, metadata: Mapping[str, Any]) -> bytes:
    """The image as a PNG file that holds ``metadata``: text as it is, everything else as JSON."""
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    file = io.BytesIO()
    image.save(file, format="png", pnginfo=info)
    return file.getvalue()


def columns_of(count: int, most: int = 8) -> int:
    """Columns of a sheet for groups of ``count`` images: one row for a group, or a few rows of about equal length."""
    return -(-count // -(-count // most))


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int, cell: int = 192) -> Image.Image:
    """Lay images out in rows, each scaled to ``cell`` x ``cell`` pixels above up to three lines of caption.

    Raises:
        ValueError: there are no images, or not as many captions as images.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions do not make a sheet")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap, line, font = 8, 14, ImageFont.load_default(11)
    text_height = 3 * line + gap
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + text_height) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + (i % columns) * (cell + gap), gap + (i // columns) * (cell + text_height)
        # enlarged small images show their pixels, so that interpolation is not mistaken for detail
        method = Image.Resampling.NEAREST if image.width < cell else Image.Resampling.LANCZOS
        sheet.paste(image.convert("RGB").resize((cell, cell), method), (x, y))
        for k, words in enumerate(textwrap.wrap(caption, max(8, cell // 6))[:3]):
            draw.text((x, y + cell + 2 + k * line), words, fill="black", font=font)
    return sheet


def similarity(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> tuple[float, float]:
    """PSNR in dB over all pairs together (inf: they are equal), and the mean absolute difference of 255 levels.

    At 20 dB a difference is visible; from 35 dB on it is hard to see.
    """
    a = np.stack([np.asarray(image.convert("RGB"), np.float64) for image in images])
    b = np.stack([np.asarray(image.convert("RGB"), np.float64) for image in references])
    square = float(((a - b) ** 2).mean())
    return float("inf") if square == 0 else 10 * float(np.log10(255**2 / square)), float(np.abs(a - b).mean())
