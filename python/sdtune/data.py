"""The concept's pictures: listing, loading, and which sample sees what."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from sdtune.errors import BadInput

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_pictures(folder: str | Path) -> list[Path]:
    """Every file of the folder, sorted by name, so that all hosts number them alike. Hidden files are left out.

    Raises:
        BadInput: the folder is missing or empty, holds a folder, or a file that Pillow cannot open as a picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"data.path: the picture folder {folder} does not exist")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if not files:
        raise BadInput(f"data.path: the picture folder {folder} is empty; put pictures of the concept in it")
    for path in files:
        if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
            raise BadInput(f"data.path: {path} is no picture ({', '.join(IMAGE_SUFFIXES)}); move it out of the folder")
        try:
            with Image.open(path) as image:
                image.load()  # verify() would let a truncated file pass
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadInput(f"data.path: {path} cannot be read as a picture ({error}); replace or remove it") from None
    return files


def load_picture(path: Path, resolution: int, center_crop: bool) -> torch.Tensor:
    """A picture as float32 [3, resolution, resolution] in [-1, 1], upright by its EXIF orientation.

    Resized bicubically to a square; ``center_crop`` first cuts the largest centred square out.
    """
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if center_crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    image = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(127.5).sub_(1.0)


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
