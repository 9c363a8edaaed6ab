"""Training samples: what sample n of a run consists of, and which rank computes which samples."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from sdtune.data.timesteps import Timesteps, TimestepSampling, spread

CLASS_NUMBERS = 2**40
"""Sample n of the class pictures, for prior preservation, has this number plus n."""


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
    chance: float
    """Uniform in [0, 1): decides whether the caption is dropped."""
    number: int
    """The sample's own number. Class pictures have numbers from :data:`CLASS_NUMBERS` on."""
    weight: float = 1.0
    """Of its loss."""


class Sampler:
    """Random samples that depend on the seed and on the sample's number only.

    Sample ``n`` of a run is the same for any number of ranks, batch size and gradient accumulation, and whether or not
    the run was interrupted. So N ranks train as one rank with N times the batch, no two ranks see the same noise, and a
    checkpoint needs no random state.
    """

    def __init__(
        self,
        seed: int,
        pictures: int,
        captions: int,
        timesteps: int,
        shape_of: Callable[[int], tuple[int, ...]],
        *,
        class_pictures: int = 0,
        class_weight: float = 1.0,
        timestep_sampling: TimestepSampling = "uniform",
        noise_pairs: bool = False,
    ) -> None:
        """Set the ranges.

        Args:
            seed: of the run.
            pictures: number of pictures.
            captions: number of captions that a picture may be shown with.
            timesteps: length of the noise schedule.
            shape_of: [c, h, w] of a picture's latents, by its number.
            class_pictures: number of class pictures, whose numbers follow those of the pictures.
            class_weight: of the loss of a class sample.
            timestep_sampling: see :class:`sdtune.settings.TrainingArgs`.
            noise_pairs: sample 2k + 1 is sample 2k with the opposite noise.
        """
        self.class_pictures, self.class_weight = class_pictures, class_weight
        self.seed, self.pictures, self.captions = seed, pictures, captions
        self.timesteps, self.shape_of = Timesteps(timesteps), shape_of
        self._noise_pairs = noise_pairs
        self._spread = timestep_sampling != "uniform"
        self._offset = self._generator(8, 0).random()

    def _generator(self, stream: int, number: int) -> np.random.Generator:
        # Philox is a counter-based generator (Salmon et al. 2011): the key is seed and stream, the counter the number
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, number, 0]))

    def _begin(self, number: int) -> tuple[int, bool, np.random.Generator]:
        epoch, position = divmod(number, self.pictures)
        order = self._generator(1, epoch).permutation(self.pictures)
        rng = self._generator(2, number)
        return int(order[position]), bool(rng.integers(2)), rng

    def _drawn(self, number: int) -> tuple[int, float]:
        """Number of the draw that sample ``number`` has its random numbers from, and the sign of its noise."""
        return (number // 2, -1.0 if number % 2 else 1.0) if self._noise_pairs else (number, 1.0)

    def pictures_of(self, number: int) -> list[tuple[int, bool]]:
        """The pictures of sample ``number`` and its class sample, and whether each is mirrored; no noise is drawn."""
        draw, _ = self._drawn(number)
        own = [self._begin(draw)[:2]]
        return [*own, (self._class_begin(draw)[0], False)] if self.class_pictures else own

    def _class_begin(self, number: int) -> tuple[int, np.random.Generator]:
        epoch, position = divmod(number, self.class_pictures)
        order = self._generator(6, epoch).permutation(self.class_pictures)
        return self.pictures + int(order[position]), self._generator(7, number)

    def class_sample(self, number: int) -> Sample:
        """The class sample that goes with sample ``number``; class pictures are not mirrored."""
        draw, sign = self._drawn(number)
        picture, rng = self._class_begin(draw)
        drawn = self._draw(picture, False, rng, draw, sign)
        return replace(drawn, number=CLASS_NUMBERS + number, weight=drawn.weight * self.class_weight)

    def __call__(self, number: int) -> Sample:
        """Sample ``number`` (0, 1, ...). Each epoch, as many draws as pictures, shows every picture once."""
        draw, sign = self._drawn(number)
        return replace(self._draw(*self._begin(draw), draw, sign), number=number)

    def _draw(self, picture: int, mirrored: bool, rng: np.random.Generator, draw: int, sign: float) -> Sample:
        caption, timestep, weight = rng.integers(self.captions), int(rng.integers(self.timesteps.count)), 1.0
        if self._spread:
            timestep, weight = self.timesteps.at(spread(self._offset, draw))
        noises = torch.from_numpy(rng.standard_normal((2, *self.shape_of(picture)), dtype=np.float32))
        return Sample(
            picture, mirrored, int(caption), timestep, noises[0], sign * noises[1], rng.random(), draw, weight
        )


def sample_numbers(first: int, micro: int, rank: int, *, batch: int, world_size: int) -> range:
    """Numbers of the samples that ``rank`` computes in micro-step ``micro`` of the optimizer step from ``first`` on.

    Over all ranks and micro-steps, an optimizer step takes consecutive numbers: one global batch.
    """
    begin = first + (micro * world_size + rank) * batch
    return range(begin, begin + batch)
