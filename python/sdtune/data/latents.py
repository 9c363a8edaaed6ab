"""The latent cache: the VAE's posterior of each picture and of its mirror image, computed once, kept on disk.

A plain training loop encodes the same pictures at every step; at 512 pixels that is about half of the step's time. The
encoder returns a normal distribution. With its mean and log-variance in the cache, drawing from it at each step gives
the same samples.

A picture is encoded when a step first needs it, by one rank of the cluster, so the first step does not wait for
pictures that it does not show. Every host keeps all posteriors in files and reads them from there, so memory does not
grow with the number of pictures. When all pictures are encoded, the VAE leaves memory.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from sdtune.data.buckets import bucket_of, size_of
from sdtune.data.pictures import View, load_picture, view_of
from sdtune.data.posterior_files import PosteriorFiles
from sdtune.host.memory import release_free_memory
from sdtune.models.family import ImageEncoder
from sdtune.models.geometry import Geometry

Entry = tuple[int, bool]
"""A picture's number, and whether it is mirrored."""


class LatentCache:
    """Mean and log-variance of the posterior of n pictures and their mirror images, each float32 [c, h, w].

    Attributes:
        count: number of pictures.
    """

    def __init__(
        self,
        geometry: Geometry,
        load_encoder: Callable[[], ImageEncoder],
        files: PosteriorFiles,
        pictures: Sequence[Path],
        resolution: int,
        center_crop: bool,
        *,
        buckets: bool = False,
        unmirrored: int = 0,
        background: str = "white",
        rank: int = 0,
        world_size: int = 1,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Nothing is encoded yet.

        Args:
            geometry: of the VAE.
            load_encoder: loads the VAE's encoder; called when the first picture is encoded.
            files: of this host.
            pictures: n files.
            resolution: side in pixels.
            center_crop: see :func:`sdtune.data.pictures.fit_picture`.
            buckets: give each picture a size with its proportions and at most ``resolution`` squared pixels.
            unmirrored: so many pictures, the last ones, are not mirrored.
            background: see :func:`sdtune.data.pictures.open_picture`.
            rank: this rank.
            world_size: number of ranks.
            sum_over_ranks: all-reduce that sums a tensor; needed for more than one rank.
        """
        if world_size > 1 and sum_over_ranks is None:
            raise ValueError("sum_over_ranks is needed for more than one rank")
        self._geometry, self._load_encoder, self._files = geometry, load_encoder, files
        self._pictures, self._cut = list(pictures), center_crop or buckets
        square = (resolution, resolution)
        originals = [size_of(p) for p in self._pictures]
        self._sizes = [bucket_of(*original, resolution**2) if buckets else square for original in originals]
        self._views = [view_of(o, s, self._cut) for o, s in zip(originals, self._sizes, strict=True)]
        self._background = background
        self._rank, self._world_size, self._sum = rank, world_size, sum_over_ranks
        self.count = len(self._pictures)
        self._entries = 2 * self.count - unmirrored
        self._names: dict[Entry, str] = {}
        """Files of the posteriors that every host has."""
        self._encode: ImageEncoder | None = None

    @property
    def complete(self) -> bool:
        """Whether every picture and mirror image is encoded."""
        return len(self._names) == self._entries

    def shape_of(self, picture: int) -> tuple[int, int, int]:
        """[c, h, w] of a picture's latents."""
        width, height = self._sizes[picture]
        return self._geometry.channels, self._geometry.latent_side(height), self._geometry.latent_side(width)

    def view_of(self, picture: int) -> View:
        """How a picture was cropped and resized; the same for its mirror image, since crops are centred."""
        return self._views[picture]

    def encode(self, entries: Iterable[Entry]) -> int:
        """Encode those of ``entries`` that no host has. Every rank has to call this with the same entries.

        Returns:
            How many were encoded in the whole cluster.
        """
        asked = sorted(set(entries) - self._names.keys())
        if not asked:
            return 0
        names = [self._name(*entry) for entry in asked]
        has = torch.zeros(self._world_size, len(asked))
        has[self._rank] = torch.tensor([float(self._files.has(name)) for name in names])
        has = self._summed(has)
        encoded = 0
        shared: list[tuple[Entry, str, int]] = []  # with the rank that provides the posterior
        for entry, name, on_ranks in zip(asked, names, has.t().tolist(), strict=True):
            provider = next((rank for rank, there in enumerate(on_ranks) if there), None)
            if provider is None:
                provider = encoded % self._world_size
                encoded += 1
                if provider == self._rank:
                    self._files.write(name, self._posterior(*entry))
            if not all(on_ranks):
                shared.append((entry, name, provider))
        self._share(shared)
        self._names.update(zip(asked, names, strict=True))
        if self.complete:
            self._encode = None
            release_free_memory()
        return encoded

    def _name(self, picture: int, mirrored: bool) -> str:
        how = (self._sizes[picture], self._cut, self._background, mirrored)
        return self._files.name(self._pictures[picture], *how)

    def _share(self, entries: Sequence[tuple[Entry, str, int]]) -> None:
        """Give every host the files that a rank provides, in one all-reduce."""
        if self._world_size == 1 or not entries:
            return
        sizes = [2 * torch.Size(self.shape_of(picture)).numel() for (picture, _), _, _ in entries]
        parts = [
            self._files.read(name).flatten() if provider == self._rank else torch.zeros(size)
            for (_, name, provider), size in zip(entries, sizes, strict=True)
        ]
        summed = torch.split(self._summed(torch.cat(parts)), sizes)
        for ((picture, _), name, provider), part in zip(entries, summed, strict=True):
            if provider != self._rank and not self._files.has(name):
                self._files.write(name, part.view(2, *self.shape_of(picture)))

    def _summed(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._sum(tensor) if self._sum is not None and self._world_size > 1 else tensor

    @torch.no_grad()
    def _posterior(self, picture: int, mirrored: bool) -> torch.Tensor:
        """Encode a picture: mean and log-variance [2, c, h, w]."""
        if self._encode is None:
            self._encode = self._load_encoder()
        pixels = load_picture(self._pictures[picture], self._sizes[picture], self._cut, self._background)
        mean, logvar = self._encode((pixels.flip(-1) if mirrored else pixels)[None])
        return torch.cat([mean, logvar])

    def mean(self, picture: int, mirrored: bool = False) -> torch.Tensor:
        """The most likely latents [c, h, w] of a picture, scaled for the denoising network."""
        return self._files.read(self._names[picture, mirrored])[0] * self._geometry.scaling_factor

    def sample(self, picture: int, mirrored: bool, noise: torch.Tensor) -> torch.Tensor:
        """Latents [c, h, w], scaled for the denoising network; ``noise`` is the standard normal draw."""
        mean, logvar = self._files.read(self._names[picture, mirrored])
        latents: torch.Tensor = (mean + torch.exp(0.5 * logvar) * noise) * self._geometry.scaling_factor
        return latents
