"""Kernels in C for what torch does slowly: attention on Intel's matrix unit. ``build.py`` compiles them."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from sdtune.errors import BadInput
from sdtune.kernels.build import library

_POINTER: Any = ctypes.c_void_p
_LENGTH: Any = ctypes.c_int64
_SHAPE: list[Any] = [_LENGTH] * 5 + [ctypes.c_float, _LENGTH]


def _share_openmp() -> None:
    """Let libraries that are loaded from now on use torch's OpenMP: one set of threads, pinned once."""
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):  # in LD_PRELOAD
        return
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[5] for line in maps if line.count("/")}
    for file in sorted(files):
        if Path(file).name.startswith(("libiomp5", "libgomp")):
            ctypes.CDLL(file, mode=ctypes.RTLD_GLOBAL)
            return


@functools.cache
def _load() -> ctypes.CDLL:
    path = library()
    if not path.exists():
        raise BadInput(
            f"{path} is not there: the kernels were not compiled from this source; run ansible-playbook provision.yml "
            f"again, or set training.attention to sdpa"
        )
    _share_openmp()
    loaded = ctypes.CDLL(str(path))
    if loaded.sdtune_attention_allow() != 0:
        raise BadInput("this kernel does not let processes use AMX, 5.16 or newer does; set training.attention to sdpa")
    loaded.sdtune_attention_forward.argtypes = [_POINTER] * 3 + _SHAPE + [_POINTER] * 2
    loaded.sdtune_attention_backward.argtypes = [_POINTER] * 6 + _SHAPE + [_POINTER] * 3
    return loaded


def check() -> None:
    """Load the kernels now.

    Raises:
        BadInput: they are not compiled, or the operating system is too old for AMX.
    """
    _load()


def _shape(q: torch.Tensor, k: torch.Tensor, heads: int) -> tuple[int, ...]:
    batch, n, width = q.shape
    return batch, heads, n, k.shape[1], width // heads


def _same_kind(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if any(x.dtype != torch.bfloat16 or x.dim() != 3 for x in tensors):
        raise ValueError(f"bf16 [batch, places, channels], not {[(x.dtype, tuple(x.shape)) for x in tensors]}")
    return tuple(x.contiguous() for x in tensors)


def attention_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale * q k^T) v of each head.

    Args:
        q: bf16 [batch, n, heads * d].
        k: bf16 [batch, m, heads * d].
        v: bf16 [batch, m, heads * d].
        heads: that share the last dimension.
        scale: usually d ** -0.5.

    Returns:
        The result, bf16 [batch, n, heads * d]; and what the backward pass needs, float32 [batch * heads, n].

    Raises:
        MemoryError: a few MB a thread and head are not to be had.
    """
    q, k, v = _same_kind(q, k, v)
    out, log_sums = torch.empty_like(q), q.new_empty(len(q) * heads, q.shape[1], dtype=torch.float32)
    if _load().sdtune_attention_forward(
        *(x.data_ptr() for x in (q, k, v)), *_shape(q, k, heads), scale, torch.get_num_threads(),
        out.data_ptr(), log_sums.data_ptr(),
    ):  # fmt: skip
        raise MemoryError
    return out, log_sums


def attention_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    d_out: torch.Tensor,
    log_sums: torch.Tensor,
    heads: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of :func:`attention_forward` for q, k and v, of their shapes; ``d_out`` is that of ``out``."""
    q, k, v, out, d_out = _same_kind(q, k, v, out, d_out)
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if _load().sdtune_attention_backward(
        *(x.data_ptr() for x in (q, k, v, out, d_out, log_sums)), *_shape(q, k, heads), scale, torch.get_num_threads(),
        *(x.data_ptr() for x in gradients),
    ):  # fmt: skip
        raise MemoryError
    return gradients
