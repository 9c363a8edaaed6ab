"""Frozen weights in the type and layout that training uses, converted once per host and memory-mapped by every rank.

Model hubs store float32. Training uses bf16, with convolution weights in channels-last layout. A conversion at every
start would take seconds, and both copies would be in memory for a moment, on each rank. So the first rank of a host
writes the converted weights to a cache, and every rank maps that file. Loading then takes almost no time, and the host
holds the weights in memory once, whatever its number of ranks. Mapped pages are as fast as private ones (measured: SD
1.5 on 2 cores, 5.6 s per step in both cases).

Beside each file is a record of what was written, see :mod:`standalone.cached_weights`.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import nn

from sdtune.errors import BadInput
from sdtune.files import hold_lock, is_writable, nearest_folder
from sdtune.host.memory import release_free_memory
from sdtune.settings import Job
from sdtune.sizes import sizes
from standalone import cached_weights

M = TypeVar("M", bound=nn.Module)


def cache_folder(job: Job) -> Path:
    """Folder of converted weights: the job's, or ``$XDG_CACHE_HOME/sdtune/weights``."""
    if job.model.weights_cache:
        return Path(job.model.weights_cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdtune" / "weights"


def check_cache(folder: Path) -> None:
    """Check that this user can write to the cache folder.

    Raises:
        BadInput: the user cannot; the message has the remedy.
    """
    nearest = nearest_folder(folder)
    if not is_writable(nearest):
        raise BadInput(f"model.weights_cache: {nearest} cannot be written to by this user; name another folder")


def _write(tensors: dict[str, torch.Tensor], target: Path, source: str) -> None:
    """Write a safetensors file completely, or not at all."""
    needed = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(target.parent).free
    if free < 1.05 * needed:
        free_text, needed_text = sizes(free, 1.05 * needed)
        raise BadInput(
            f"model.weights_cache: {target.parent} has {free_text} free, but {needed_text} are needed; make room, or "
            f"name another folder"
        )
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt", "source": source})
        cached_weights.write_record(temporary, target)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _is_intact(target: Path) -> bool:
    """Whether a file of the cache is there and, by its size and time, the one that was written."""
    return target.exists() and not cached_weights.problem(target)


def map_tensors(
    make: Callable[[], dict[str, torch.Tensor]], cache: Path, name: str, fingerprint: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Map tensors from a file in the cache, which is written first if it is missing, or changed since it was written.

    Args:
        make: computes the tensors, all contiguous; only one rank of a host calls it, once.
        cache: folder of converted weights.
        name: first part of the file's name, such as ``unet``.
        fingerprint: of the model that the tensors are computed from.
        dtype: of all tensors.

    Returns:
        The tensors by name. They are shared between processes and must not be written to.

    Raises:
        BadInput: the disk is full.
    """
    # the names of a network's weights depend on the libraries, so their versions are part of the file name
    versions = f"diffusers-{diffusers.__version__}-transformers-{transformers.__version__}"
    target = cache / f"{name}-{fingerprint}-{str(dtype).removeprefix('torch.')}-{versions}.safetensors"
    cache.mkdir(parents=True, exist_ok=True)
    if not _is_intact(target):
        with hold_lock(target.with_suffix(".lock")):  # other ranks of this host wait here
            if not _is_intact(target):
                _write(make(), target, fingerprint)
                release_free_memory()  # that of the tensors, before this rank trains
    mapped: dict[str, torch.Tensor] = load_file(target)
    return mapped


def load_converted(
    load: Callable[[], M], make: Callable[[], M], cache: Path, name: str, fingerprint: str, dtype: torch.dtype
) -> M:
    """Load a frozen network whose weights are mapped from the cache, see :func:`map_tensors`.

    Args:
        load: loads the network from its folder, in ``dtype``.
        make: constructs the network from its configuration; its initial weights are not used.
        cache: folder of converted weights.
        name: of the network, such as ``unet``.
        fingerprint: of the model that ``load`` reads.
        dtype: of the weights.

    Returns:
        The network in evaluation mode, without gradients. Its weights must not be written to.

    Raises:
        BadInput: the disk is full.
    """

    def convert() -> dict[str, torch.Tensor]:
        """The weights of ``load()``; those with four dimensions are stored in channels-last order."""
        return {
            key: (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).contiguous()
            for key, tensor in load().state_dict().items()
        }

    with init_empty_weights():
        module = make()
    tensors = map_tensors(convert, cache, name, fingerprint, dtype)
    mapped = {k: v.permute(0, 3, 1, 2) if v.dim() == 4 else v for k, v in tensors.items()}
    module.load_state_dict(mapped, strict=True, assign=True)
    return module.requires_grad_(False).eval()
