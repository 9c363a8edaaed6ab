"""Kernels in C for what torch does slowly: attention in bf16, with AMX or AVX-512. ``build.py`` compiles them."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from sdtune.errors import BadInput
from sdtune.host.processor import instruction_set
from sdtune.ops.kernels.build import PROCESSORS, library

_POINTER: Any = ctypes.c_void_p
_LENGTH: Any = ctypes.c_int64
_SHAPE: list[Any] = [_LENGTH] * 5 + [ctypes.c_float, _LENGTH]


def _share_openmp() -> None:
    """Let libraries that are loaded from now on use torch's OpenMP: one set of threads, pinned once."""
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):  # in LD_PRELOAD, or shared by torch
        return
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[5] for line in maps if line.count("/")}
    openmp = [file for file in files if Path(file).name.startswith(("libiomp5", "libgomp"))]
    # other packages bring one of their own
    for file in sorted(openmp, key=lambda file: ("/torch" not in file, file))[:1]:
        ctypes.CDLL(file, mode=ctypes.RTLD_GLOBAL)


def usable() -> bool:
    """Whether there are kernels for this processor."""
    return instruction_set() in PROCESSORS


@functools.cache
def _load() -> ctypes.CDLL:
    instructions = instruction_set()
    if instructions not in PROCESSORS:
        raise BadInput(
            f"the kernels are for {' and '.join(PROCESSORS)}, not for this processor, which has {instructions}; "
            f"set training.attention to sdpa"
        )
    path = library(instructions)
    if not path.exists():
        raise BadInput(
            f"{path} is not there: the kernels were not compiled from this source; run ansible-playbook provision.yml "
            f"again, or set training.attention to sdpa"
        )
    _share_openmp()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BadInput(f"the kernels do not load: {error}; set training.attention to sdpa") from None
    if loaded.sdtune_attention_allow() != 0:
        raise BadInput("this kernel does not let processes use AMX, 5.16 or newer does; set training.attention to sdpa")
    loaded.sdtune_attention_forward.argtypes = [_POINTER] * 3 + _SHAPE + [_POINTER] * 2
    loaded.sdtune_attention_backward.argtypes = [_POINTER] * 6 + _SHAPE + [_POINTER] * 3
    return loaded


def check() -> None:
    """Load the kernels now.

    Raises:
        BadInput: there are none for this processor, they are not compiled, do not load, or the operating system is too
            old for AMX.
    """
    _load()


def _operands(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *like_q: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
    """As they have to lie in memory, and batch, heads, n, m, d; what C would not notice is refused here."""
    tensors = (q, k, v, *like_q)
    shapes = [tuple(x.shape) for x in tensors]
    if any(x.dtype != torch.bfloat16 or x.dim() != 3 for x in tensors):
        raise ValueError(f"bf16 [batch, places, channels], not {[(x.dtype, tuple(x.shape)) for x in tensors]}")
    batch, n, width = q.shape
    m = k.shape[1]
    if k.shape != (batch, m, width) or v.shape != k.shape or any(x.shape != q.shape for x in like_q):
        raise ValueError(f"these do not belong together: {shapes}")
    if 0 in (*q.shape, m) or width % heads:
        raise ValueError(f"nothing, or no {heads} heads of the same size: {shapes}")
    return tuple(x.contiguous() for x in tensors), (batch, heads, n, m, width // heads)


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
        ValueError: shapes or types do not fit.
        MemoryError: a few MB a thread are not to be had.
    """
    (q, k, v), shape = _operands(q, k, v, heads)
    out, log_sums = torch.empty_like(q), q.new_empty(len(q) * heads, q.shape[1], dtype=torch.float32)
    if _load().sdtune_attention_forward(
        *(x.data_ptr() for x in (q, k, v)), *shape, scale, torch.get_num_threads(),
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
    (q, k, v, out, d_out), shape = _operands(q, k, v, heads, out, d_out)
    if log_sums.shape != (len(q) * heads, q.shape[1]) or log_sums.dtype != torch.float32:
        raise ValueError(f"sums of another pass: {log_sums.dtype} {tuple(log_sums.shape)}")
    log_sums = log_sums.contiguous()
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if _load().sdtune_attention_backward(
        *(x.data_ptr() for x in (q, k, v, out, d_out, log_sums)), *shape, scale, torch.get_num_threads(),
        *(x.data_ptr() for x in gradients),
    ):  # fmt: skip
        raise MemoryError
    return gradients
