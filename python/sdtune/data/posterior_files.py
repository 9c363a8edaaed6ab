"""The posteriors of pictures on the disk of a host, so that a picture is encoded once for all runs.

One file for each picture, size and mirror image. Its name is a hash of everything that it depends on, so a file is
never out of date, and what a killed run has encoded stays. It ends with the SHA-256 of what precedes it, and a damaged
file counts as missing.
"""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import torch

_DIGEST = hashlib.sha256().digest_size


class PosteriorFiles:
    """A folder of posteriors of one VAE."""

    def __init__(self, folder: Path, vae: str) -> None:
        """Nothing is read or written yet.

        Args:
            folder: on this host; several processes may use it at once.
            vae: fingerprint of the VAE's weights.
        """
        self._folder, self._vae = folder, vae

    def name(self, picture: Path, *how: object) -> str:
        """The file for a picture's content, prepared as ``how`` says."""
        content = hashlib.sha256(picture.read_bytes()).hexdigest()
        return hashlib.sha256(repr((self._vae, content, how)).encode()).hexdigest()[:32] + ".npy"

    def has(self, name: str) -> bool:
        """Whether the file is there and holds what was written."""
        try:
            data = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return False
        return hashlib.sha256(data[:-_DIGEST]).digest() == data[-_DIGEST:]

    def read(self, name: str) -> torch.Tensor:
        """Mean and log-variance, float32 [2, c, h, w]."""
        return torch.from_numpy(np.load(self._folder / name))

    def write(self, name: str, posterior: torch.Tensor) -> None:
        """Write the file, completely or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{name}.{os.getpid()}"
        data = io.BytesIO()
        np.save(data, posterior.numpy())
        temporary.write_bytes(data.getvalue() + hashlib.sha256(data.getvalue()).digest())
        temporary.replace(self._folder / name)
