"""How much memory training needs with a model, predicted from its configuration before any of it is loaded."""

from dataclasses import dataclass
from pathlib import Path

from sdtune.inference.memory import read_size

# Activations that the backward pass needs, as multiples of one full-resolution feature map of the UNet. A sample of
# Stable Diffusion 1.5 takes 100 to 160. A low estimate: what it refuses cannot fit, what it accepts may be too much.
_MAPS = 40


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that training takes at least."""

    weights: int
    """Of the frozen networks, which the ranks of a host share."""
    sample: int
    """Of each sample that a rank computes at once."""


def footprint(model: Path, resolution: int, *, bf16: bool) -> Footprint:
    """Predict it for square pictures of ``resolution`` pixels, in bf16 or float32."""
    size, element = read_size(model), 2 if bf16 else 4
    side = resolution // size.factor
    return Footprint(weights=element * size.parameters, sample=element * _MAPS * side * side * size.unet_channels)
