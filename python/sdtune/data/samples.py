"""Training samples: what sample n of a run consists of, and which rank computes which samples."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Sample:
    """What one training sample consists of."""

    picture: int
    """Number of the picture."""
    mirrored: bool
    """Whether the picture is mirrored."""
    caption: int
    """Number of the caption, among those that the picture may be shown with."""
    timestep: int
    """Timestep of the noise schedule."""
    latent_noise: torch.Tensor
    """Standard normal float32 [c, h, w]: draws the latents from the VAE's posterior."""
    noise: torch.Tensor
    """Standard normal float32 [c, h, w]: what the network has to predict."""


class Sampler:
    """Random samples that depend on the seed and on the sample's number only.

    Sample ``n`` of a run is the same for any number of ranks, batch size and gradient accumulation, and whether or not
    the run was interrupted. So N ranks train as one rank with N times the batch, no two ranks see the same noise, and a
    checkpoint needs no random state.
    """

    def __init__(self, seed: int, pictures: int, captions: int, timesteps: int, shape: tuple[int, ...]) -> None:
        """Set the ranges.

        Args:
            seed: of the run.
            pictures: number of pictures.
            captions: number of captions that a picture may be shown with.
            timesteps: length of the noise schedule.
            shape: [c, h, w] of the latents.
        """
        self.seed, self.pictures, self.captions = seed, pictures, captions
        self.timesteps, self.shape = timesteps, shape

    def _generator(self, stream: int, number: int) -> np.random.Generator:
        # Philox is a counter-based generator (Salmon et al. 2011): the key is seed and stream, the counter the number
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, number, 0]))

    def _begin(self, number: int) -> tuple[int, bool, np.random.Generator]:
        epoch, position = divmod(number, self.pictures)
        order = self._generator(1, epoch).permutation(self.pictures)
        rng = self._generator(2, number)
        return int(order[position]), bool(rng.integers(2)), rng

    def picture_of(self, number: int) -> tuple[int, bool]:
        """The picture of sample ``number`` and whether it is mirrored. This is cheap: no noise is drawn."""
        return self._begin(number)[:2]

    def __call__(self, number: int) -> Sample:
        """Sample ``number`` (0, 1, ...). Each epoch, ``pictures`` samples, shows every picture once."""
        picture, mirrored, rng = self._begin(number)
        caption, timestep = rng.integers(self.captions), rng.integers(self.timesteps)
        noises = torch.from_numpy(rng.standard_normal((2, *self.shape), dtype=np.float32))
        return Sample(picture, mirrored, int(caption), int(timestep), noises[0], noises[1])


def sample_numbers(first: int, micro: int, rank: int, *, batch: int, world_size: int) -> range:
    """Numbers of the samples that ``rank`` computes in micro-step ``micro`` of the optimizer step from ``first`` on.

    Over all ranks and micro-steps, an optimizer step takes consecutive numbers: one global batch.
    """
    begin = first + (micro * world_size + rank) * batch
    return range(begin, begin + batch)
