"""The latent cache: the VAE's posterior of each picture and of its mirror image, computed once.

A plain training loop encodes the same few pictures at every step; at 512 pixels that is about half of the step's time.
The encoder returns a normal distribution. With its mean and log-variance in the cache, drawing from it at each step
gives the same samples.

A picture is encoded when a step first needs it, by one rank of the cluster, so the first step does not wait for
pictures that it does not show. When all pictures are encoded, the VAE leaves memory.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from sdtune.data.pictures import load_picture
from sdtune.models.family import ImageEncoder
from sdtune.models.geometry import Geometry


def release_free_memory() -> None:
    """Return freed memory to the operating system. Allocators keep it, but ranks share the memory of a host."""
    process = ctypes.CDLL(None)
    if hasattr(process, "MallocExtension_ReleaseFreeMemory"):  # gperftools is preloaded
        process.MallocExtension_ReleaseFreeMemory()
    else:
        process.malloc_trim(0)


Entry = tuple[int, bool]
"""A picture's number, and whether it is mirrored."""


class LatentCache:
    """Mean and log-variance of the posterior of n pictures and their mirror images, each float32 [c, h, w].

    Attributes:
        shape: [c, h, w] of one picture's latents.
        count: number of pictures.
    """

    def __init__(
        self,
        geometry: Geometry,
        load_encoder: Callable[[], ImageEncoder],
        pictures: Sequence[Path],
        resolution: int,
        center_crop: bool,
        *,
        background: str = "white",
        rank: int = 0,
        world_size: int = 1,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Make an empty cache; nothing is encoded yet.

        Args:
            geometry: of the VAE.
            load_encoder: loads the VAE's encoder; called when the first picture is encoded.
            pictures: n files.
            resolution: side in pixels.
            center_crop: see :func:`sdtune.data.pictures.fit_picture`.
            background: see :func:`sdtune.data.pictures.open_picture`.
            rank: this rank.
            world_size: number of ranks.
            sum_over_ranks: all-reduce that sums a tensor; needed for more than one rank.
        """
        if world_size > 1 and sum_over_ranks is None:
            raise ValueError("sum_over_ranks is needed for more than one rank")
        self._load_encoder, self._pictures = load_encoder, list(pictures)
        self._resolution, self._center_crop, self._background = resolution, center_crop, background
        self._rank, self._world_size, self._sum = rank, world_size, sum_over_ranks
        self.shape = geometry.latent_shape(resolution)
        self.count = len(self._pictures)
        self._scaling_factor = geometry.scaling_factor
        self._posteriors: dict[Entry, torch.Tensor] = {}  # [2, c, h, w]: mean and log-variance
        self._encode: ImageEncoder | None = None

    @property
    def complete(self) -> bool:
        """Whether every picture and mirror image is encoded."""
        return len(self._posteriors) == 2 * self.count

    @torch.no_grad()
    def encode(self, entries: Iterable[Entry]) -> int:
        """Encode those of ``entries`` that are missing. Every rank has to call this with the same entries.

        Returns:
            How many were encoded in the whole cluster.
        """
        missing = sorted(set(entries) - self._posteriors.keys())
        if not missing:
            return 0
        if self._encode is None:
            self._encode = self._load_encoder()
        posteriors = torch.zeros(len(missing), 2, *self.shape)
        for i in range(self._rank, len(missing), self._world_size):
            picture, mirrored = missing[i]
            pixels = load_picture(self._pictures[picture], self._resolution, self._center_crop, self._background)
            mean, logvar = self._encode((pixels.flip(-1) if mirrored else pixels)[None])
            posteriors[i, 0], posteriors[i, 1] = mean[0], logvar[0]
        if self._sum is not None and self._world_size > 1:
            posteriors = self._sum(posteriors)
        self._posteriors.update(zip(missing, posteriors, strict=True))
        if self.complete:
            self._encode = None
            release_free_memory()
        return len(missing)

    def mean(self, picture: int, mirrored: bool = False) -> torch.Tensor:
        """The most likely latents [c, h, w] of a picture, scaled for the denoising network."""
        return self._posteriors[picture, mirrored][0] * self._scaling_factor

    def sample(self, picture: int, mirrored: bool, noise: torch.Tensor) -> torch.Tensor:
        """Latents [c, h, w], scaled for the denoising network; ``noise`` is the standard normal draw."""
        mean, logvar = self._posteriors[picture, mirrored]
        latents: torch.Tensor = (mean + torch.exp(0.5 * logvar) * noise) * self._scaling_factor
        return latents
