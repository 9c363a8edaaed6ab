"""The latent cache: what the VAE says of each picture and of its mirror image, computed once.

The usual script encodes the same few pictures at every step, at 512 pixels about half of a step's time. The encoder's
answer is a normal distribution: with its mean and log-variance kept, drawing from them per step gives the same samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from sdtune.data import load_picture


@dataclass(frozen=True)
class LatentCache:
    """Moments of n pictures, float32 [n, 2, c, h, w]: index 0 of the second axis as it is, 1 mirrored."""

    mean: torch.Tensor
    logvar: torch.Tensor
    scaling_factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape [c, h, w] of one picture's latents."""
        return tuple(self.mean.shape[2:])

    def sample(self, picture: int, mirrored: bool, noise: torch.Tensor) -> torch.Tensor:
        """Latents [c, h, w], scaled as the UNet expects, with ``noise`` as the standard-normal draw."""
        mean, logvar = self.mean[picture, int(mirrored)], self.logvar[picture, int(mirrored)]
        return (mean + torch.exp(0.5 * logvar) * noise) * self.scaling_factor


@torch.no_grad()
def encode_pictures(
    model: str | Path,
    pictures: Sequence[Path],
    resolution: int,
    center_crop: bool,
    *,
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> LatentCache:
    """Encode every picture once in the whole cluster: each rank takes its share, and the sum gives all of them to all.

    Args:
        model: pipeline folder; its ``vae/`` is loaded in float32 and freed before this returns.
        pictures: n files.
        resolution: side in pixels.
        center_crop: see :func:`sdtune.data.load_picture`.
        rank: this rank.
        world_size: number of ranks.
        sum_over_ranks: all-reduce that sums a tensor; needed for more than one rank.
    """
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True).eval()
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side = resolution // factor
    moments = torch.zeros(len(pictures), 2, 2, vae.config.latent_channels, side, side)
    for i in range(rank, len(pictures), world_size):
        pixels = load_picture(pictures[i], resolution, center_crop)
        for mirrored in (0, 1):
            one = pixels.flip(-1) if mirrored else pixels
            posterior = vae.encode(one[None]).latent_dist
            moments[i, mirrored, 0], moments[i, mirrored, 1] = posterior.mean[0], posterior.logvar[0]
    if world_size > 1:
        if sum_over_ranks is None:
            raise ValueError("sum_over_ranks is needed for more than one rank")
        moments = sum_over_ranks(moments)
    return LatentCache(moments[:, :, 0].contiguous(), moments[:, :, 1].contiguous(), float(vae.config.scaling_factor))
