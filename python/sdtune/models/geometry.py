"""How the size of a picture and the shape of its latents relate. This is the only place that computes it."""

from dataclasses import dataclass
from pathlib import Path

from sdtune.models.folder import read_config


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Of a model's VAE."""

    factor: int
    """Pixels along the side of one latent cell."""
    channels: int
    """Channels of the latents."""
    scaling_factor: float
    """The denoising network expects latents of the VAE multiplied by this."""

    def latent_side(self, pixels: int) -> int:
        """Side of the latents of a picture whose side has ``pixels`` pixels."""
        return pixels // self.factor

    def latent_shape(self, pixels: int) -> tuple[int, int, int]:
        """Shape [c, h, w] of the latents of a square picture."""
        side = self.latent_side(pixels)
        return self.channels, side, side


def read_geometry(model: Path) -> Geometry:
    """Read the geometry from ``vae/config.json`` of a pipeline folder.

    Raises:
        BadInput: the file is missing or not valid JSON.
    """
    config = read_config(model / "vae" / "config.json")
    return Geometry(
        factor=int(2 ** (len(config["block_out_channels"]) - 1)),  # each stage but the last halves the side
        channels=int(config.get("latent_channels", 4)),
        scaling_factor=float(config.get("scaling_factor", 0.18215)),
    )
