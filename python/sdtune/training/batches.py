"""From sample numbers to the tensors and captions of a batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures
from sdtune.data.samples import Sample, Sampler
from sdtune.methods.method import Method
from sdtune.models.family import Batch, Networks
from sdtune.settings import Job


class Batches:
    """Makes the batches of a run.

    Attributes:
        pictures: files of all pictures.
        cache: their latents.
    """

    def __init__(self, job: Job, networks: Networks, method: Method, accelerator: Accelerator) -> None:
        """Nothing is encoded yet."""
        self.pictures: list[Path] = list_pictures(job.data.path)
        self.cache = LatentCache(
            networks.geometry,
            networks.load_image_encoder,
            self.pictures,
            job.data.resolution,
            job.data.center_crop,
            background=job.data.background,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            sum_over_ranks=lambda x: accelerator.reduce(x, "sum"),
        )
        self._sampler = Sampler(
            job.seed, len(self.pictures), method.num_captions, networks.num_timesteps, self.cache.shape
        )
        self._method = method

    def encode(self, numbers: range) -> int:
        """Encode the pictures of the samples ``numbers``, of all ranks. Every rank calls this.

        Returns:
            How many pictures had to be encoded.
        """
        return 0 if self.cache.complete else self.cache.encode(map(self._sampler.picture_of, numbers))

    def samples(self, numbers: range) -> list[Sample]:
        """The samples ``numbers``."""
        return [self._sampler(n) for n in numbers]

    def make(self, samples: Sequence[Sample]) -> Batch:
        """The batch of ``samples``, whose pictures have to be encoded."""
        return Batch(
            latents=torch.stack([self.cache.sample(s.picture, s.mirrored, s.latent_noise) for s in samples]),
            noise=torch.stack([s.noise for s in samples]),
            timesteps=torch.tensor([s.timestep for s in samples]),
            captions=[self._method.caption(s) for s in samples],
        )
