"""The latent cache: what the VAE says of each picture and of its mirror image, computed once.

The usual script encodes the same few pictures at every step, at 512 pixels about half of a step's time. The encoder's
answer is a normal distribution: with its mean and log-variance kept, drawing from them per step gives the same samples.

A picture is encoded when a step first needs it, by one rank of the cluster, so that the first step does not wait for
pictures that it does not show. When all are there, the VAE leaves memory.
"""

import ctypes
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdtune.data.pictures import load_picture

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def release_free_memory() -> None:
    """Give memory that was freed back to the system; allocators keep it, and ranks share a host."""
    process = ctypes.CDLL(None)
    if hasattr(process, "MallocExtension_ReleaseFreeMemory"):  # gperftools is preloaded
        process.MallocExtension_ReleaseFreeMemory()
    else:
        process.malloc_trim(0)


def latent_side(model: Path, resolution: int) -> int:
    """Side of the latents of a square picture of ``resolution`` pixels."""
    config = json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))
    return resolution // int(2 ** (len(config["block_out_channels"]) - 1))


Entry = tuple[int, bool]
"""A picture's number, and whether it is mirrored."""


class LatentCache:
    """Moments of n pictures and their mirror images, each float32 [c, h, w].

    Attributes:
        shape: [c, h, w] of one picture's latents.
        count: number of pictures.
        scaling_factor: what the VAE's latents are multiplied by for the UNet.
    """

    def __init__(
        self,
        model: str | Path,
        pictures: Sequence[Path],
        resolution: int,
        center_crop: bool,
        *,
        rank: int = 0,
        world_size: int = 1,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Read the VAE's configuration; nothing is encoded yet.

        Args:
            model: pipeline folder; its ``vae/`` is used in float32.
            pictures: n files.
            resolution: side in pixels.
            center_crop: see :func:`sdtune.data.load_picture`.
            rank: this rank.
            world_size: number of ranks.
            sum_over_ranks: all-reduce that sums a tensor; needed for more than one rank.
        """
        if world_size > 1 and sum_over_ranks is None:
            raise ValueError("sum_over_ranks is needed for more than one rank")
        self._model, self._pictures = Path(model), list(pictures)
        self._resolution, self._center_crop = resolution, center_crop
        self._rank, self._world_size, self._sum = rank, world_size, sum_over_ranks
        config = json.loads((self._model / "vae" / "config.json").read_text(encoding="utf-8"))
        side = latent_side(self._model, resolution)
        self.shape: tuple[int, ...] = (config["latent_channels"], side, side)
        self.count = len(self._pictures)
        self.scaling_factor = float(config.get("scaling_factor", 0.18215))
        self._moments: dict[Entry, torch.Tensor] = {}  # [2, c, h, w]: mean and log-variance
        self._vae: AutoencoderKL | None = None

    @property
    def complete(self) -> bool:
        """Whether every picture and mirror image is there."""
        return len(self._moments) == 2 * self.count

    @torch.no_grad()
    def need(self, entries: Iterable[Entry]) -> int:
        """Encode what is missing; every rank has to call this with the same entries.

        Returns:
            How many were encoded in the whole cluster.
        """
        missing = sorted(set(entries) - self._moments.keys())
        if not missing:
            return 0
        if self._vae is None:
            from diffusers import AutoencoderKL  # its family of modules costs a tenth of a second

            self._vae = AutoencoderKL.from_pretrained(
                self._model, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True
            ).eval()
            # Channels last in memory would be a tenth faster, but then sums depend on the number of threads, and what N
            # ranks learn is no longer what one learns.
            del self._vae.decoder
        moments = torch.zeros(len(missing), 2, *self.shape)
        for i in range(self._rank, len(missing), self._world_size):
            picture, mirrored = missing[i]
            pixels = load_picture(self._pictures[picture], self._resolution, self._center_crop)
            posterior = self._vae.encode((pixels.flip(-1) if mirrored else pixels)[None]).latent_dist
            moments[i, 0], moments[i, 1] = posterior.mean[0], posterior.logvar[0]
        if self._sum is not None and self._world_size > 1:
            moments = self._sum(moments)
        self._moments.update(zip(missing, moments, strict=True))
        if self.complete:
            self._vae = None
            release_free_memory()
        return len(missing)

    def mean(self, picture: int, mirrored: bool = False) -> torch.Tensor:
        """The most likely latents [c, h, w] of a picture, scaled as the UNet expects."""
        return self._moments[picture, mirrored][0] * self.scaling_factor

    def sample(self, picture: int, mirrored: bool, noise: torch.Tensor) -> torch.Tensor:
        """Latents [c, h, w], scaled as the UNet expects, with ``noise`` as the standard-normal draw."""
        mean, logvar = self._moments[picture, mirrored]
        latents: torch.Tensor = (mean + torch.exp(0.5 * logvar) * noise) * self.scaling_factor
        return latents
