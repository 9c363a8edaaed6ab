"""Training samples: what sample n of a run is made of, and which rank takes which numbers."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Draw:
    """What one training sample is made of. ``latent_noise`` and ``noise`` are float32 of the latents' shape."""

    picture: int
    mirrored: bool
    template: int
    timestep: int
    latent_noise: torch.Tensor
    noise: torch.Tensor


class Sampler:
    """Random draws that depend on the seed and on the sample's number alone, not on who draws it or when.

    Sample ``g`` of a run is the same whatever the number of ranks, the batch size or the accumulation, and whether or
    not the run was interrupted before it. So N ranks train as one rank with N times the batch does, no two ranks ever
    see the same noise, and a checkpoint needs no random state.
    """

    def __init__(self, seed: int, pictures: int, templates: int, timesteps: int, shape: tuple[int, ...]) -> None:
        self.seed, self.pictures, self.templates = seed, pictures, templates
        self.timesteps, self.shape = timesteps, shape

    def _generator(self, stream: int, number: int) -> np.random.Generator:
        # Philox is a counter-based generator (Salmon et al. 2011): one key per seed and stream, one block per sample
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, number, 0]))

    def _begin(self, number: int) -> tuple[int, bool, np.random.Generator]:
        epoch, place = divmod(number, self.pictures)
        order = self._generator(1, epoch).permutation(self.pictures)
        rng = self._generator(2, number)
        return int(order[place]), bool(rng.integers(2)), rng

    def shown(self, number: int) -> tuple[int, bool]:
        """The picture of sample ``number`` and whether it is mirrored, without drawing the rest."""
        return self._begin(number)[:2]

    def __call__(self, number: int) -> Draw:
        """The draw of sample ``number`` (0, 1, ...); each run of ``pictures`` samples shows every picture once."""
        picture, mirrored, rng = self._begin(number)
        template, timestep = rng.integers(self.templates), rng.integers(self.timesteps)
        noises = torch.from_numpy(rng.standard_normal((2, *self.shape), dtype=np.float32))
        return Draw(picture, mirrored, int(template), int(timestep), noises[0], noises[1])


def sample_numbers(first: int, micro: int, rank: int, *, batch: int, world_size: int) -> range:
    """The numbers of the samples of micro-step ``micro`` on ``rank``, in an optimizer step that begins with ``first``.

    Over all ranks and micro-steps an optimizer step takes the numbers in a row, one global batch of them.
    """
    begin = first + (micro * world_size + rank) * batch
    return range(begin, begin + batch)
