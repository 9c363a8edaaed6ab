"""From sample numbers to the tensors and captions of a batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures
from sdtune.data.posterior_files import PosteriorFiles
from sdtune.data.samples import Sample, Sampler
from sdtune.data.timesteps import Timesteps
from sdtune.methods.method import Method
from sdtune.models.family import Batch, Networks
from sdtune.models.weights import cache_folder
from sdtune.settings import Job
from sdtune.training.class_pictures import class_pictures
from sdtune.training.validation import Triples, make_triples


class Batches:
    """Makes the batches of a run.

    Attributes:
        pictures: files of all pictures, those of the concept first, then class pictures.
        cache: their latents.
    """

    def __init__(self, job: Job, networks: Networks, method: Method, accelerator: Accelerator) -> None:
        """Nothing is encoded yet."""
        own, of_class = list_pictures(job.data.path), class_pictures(job, networks, accelerator)
        self.pictures: list[Path] = [*own, *of_class]
        self._count, self._class_prompt = len(own), job.prior.class_prompt
        self.cache = LatentCache(
            networks.geometry,
            networks.load_image_encoder,
            PosteriorFiles(cache_folder(job) / "latents", networks.image_encoder_id),
            self.pictures,
            job.data.resolution,
            job.data.center_crop,
            buckets=job.data.aspect_ratio_buckets,
            unmirrored=len(of_class),
            background=job.data.background,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            sum_over_ranks=lambda x: accelerator.reduce(x, "sum"),
        )
        self._sampler = Sampler(
            job.seed,
            len(own),
            method.num_captions,
            networks.num_timesteps,
            self.cache.shape_of,
            class_pictures=len(of_class),
            class_weight=job.prior.loss_weight,
            timestep_sampling=job.training.timestep_sampling,
            noise_pairs=job.training.noise_pairs,
        )
        self._method, self._num_timesteps = method, networks.num_timesteps

    def encode(self, numbers: range) -> int:
        """Encode the pictures of the samples ``numbers``, of all ranks. Every rank calls this.

        Returns:
            How many pictures had to be encoded.
        """
        if self.cache.complete:
            return 0
        return self.cache.encode(entry for number in numbers for entry in self._sampler.pictures_of(number))

    def set_shares(self, shares: Sequence[float]) -> None:
        """Set the share of the samples that each interval of the timesteps gets, see :mod:`sdtune.data.timesteps`."""
        self._sampler.timesteps = Timesteps(self._num_timesteps, shares)

    @property
    def own_pictures(self) -> list[Path]:
        """Files of the pictures of the concept."""
        return self.pictures[: self._count]

    def triples(self, count: int) -> Triples:
        """See :func:`sdtune.training.validation.make_triples`, on pictures of the concept. Every rank calls this."""
        return make_triples(self.cache, count, self._num_timesteps, self._count)

    def samples(self, numbers: range) -> list[Sample]:
        """The samples ``numbers``, and as many class samples for prior preservation."""
        own = [self._sampler(n) for n in numbers]
        return [*own, *(self._sampler.class_sample(n) for n in numbers)] if self._count < len(self.pictures) else own

    def _caption(self, sample: Sample) -> str:
        return self._method.caption(sample) if sample.picture < self._count else str(self._class_prompt)

    def groups(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """``samples`` in groups whose latents have one shape, which a batch needs."""
        groups: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            groups.setdefault(self.cache.shape_of(sample.picture), []).append(sample)
        return list(groups.values())

    def make(self, samples: Sequence[Sample]) -> Batch:
        """The batch of ``samples``, whose pictures have to be encoded and whose latents have one shape."""
        return Batch(
            latents=torch.stack([self.cache.sample(s.picture, s.mirrored, s.latent_noise) for s in samples]),
            noise=torch.stack([s.noise for s in samples]),
            timesteps=torch.tensor([s.timestep for s in samples]),
            captions=[self._caption(s) for s in samples],
            views=[self.cache.view_of(s.picture) for s in samples],
            numbers=[s.number for s in samples],
        )
