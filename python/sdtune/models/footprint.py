"""How much memory training needs with a model, predicted from its configuration before any of it is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdtune.inference.memory import read_size
from sdtune.models.folder import read_config
from sdtune.ops.normalization import RECOMPUTED_CHANNELS

# What the backward pass needs of each block, as multiples of its output. Low estimates: what they refuse cannot fit,
# what they accept may be too much. ``bench/activations.py`` prints the exact figures, up to two fifths higher.
_RESIDUAL = 2
_TRANSFORMER = 6
_GATED = 8  # more, where a block is so wide that what its gated GELU reads is not recomputed
_ADAPTED = 2  # of a transformer block with adapters, which recomputes the rest


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that training takes at least."""

    weights: int
    """Of the frozen networks, which the ranks of a host share."""
    sample: int
    """Of each sample that a rank computes at once."""


def _each(value: Any, levels: int) -> list[Any]:
    """A setting of a UNet for each of its levels; it may be one number for all."""
    return list(value) if isinstance(value, list | tuple) else [value] * levels


def _levels(unet: dict[str, Any]) -> Iterator[tuple[int, int, int, int]]:
    """Of each level of a UNet: how often the side was halved, channels, residual blocks and transformer blocks."""
    channels: list[int] = unet["block_out_channels"]
    n = len(channels)
    layers, depths = _each(unet.get("layers_per_block", 2), n), _each(unet.get("transformer_layers_per_block", 1), n)
    downs, ups = (_each(unet.get(f"{way}_block_types", ""), n) for way in ("down", "up"))
    # ups begin at the lowest level; each has one layer more
    for i, (width, layer, depth, down, up) in enumerate(zip(channels, layers, depths, downs, ups[::-1], strict=False)):
        attending = layer * ("CrossAttn" in down) + (layer + 1) * ("CrossAttn" in up)
        yield i, width, 2 * layer + 1, attending * depth
    yield n - 1, channels[-1], 2, depths[-1]  # the block in the middle


def footprint(model: Path, resolution: int, *, bf16: bool, adapted: bool) -> Footprint:
    """Predict it for square pictures of ``resolution`` pixels, in bf16 or float32, with or without adapters."""
    size, element = read_size(model), 2 if bf16 else 4
    side, numbers = resolution // size.factor, 0
    for halvings, channels, residual, transformer in _levels(read_config(model / "unet" / "config.json")):
        each = _ADAPTED if adapted else _TRANSFORMER + (_GATED if channels > RECOMPUTED_CHANNELS else 0)
        numbers += (side >> halvings) ** 2 * channels * (_RESIDUAL * residual + each * transformer)
    return Footprint(weights=element * size.parameters, sample=element * numbers)
