"""Compiled kernels for what torch does slowly in bf16, with AMX or AVX-512: attention here. ``build.py`` compiles them.

They are operators of torch, ``sdtune::attention_forward`` and ``sdtune::attention_backward``. torch knows the shapes of
their results (on the meta device, for ``torch.compile``) and their gradients. :mod:`sdtune.ops.kernels.elementwise` has
what surrounds matrix multiplications.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdtune.errors import BadInput
from sdtune.host.libraries import mapped_files
from sdtune.host.processor import instruction_set
from sdtune.ops.kernels.build import PROCESSORS, library

_POINTER: Any = ctypes.c_void_p
_LENGTH: Any = ctypes.c_int64
_SHAPE: list[Any] = [_LENGTH] * 5 + [ctypes.c_float, _LENGTH]
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "attention_allow": ([], ctypes.c_int),
    "attention_forward": ([_POINTER] * 3 + _SHAPE + [_POINTER] * 2, ctypes.c_int),
    "attention_backward": ([_POINTER] * 6 + _SHAPE + [_POINTER] * 3, ctypes.c_int),
    "gated_gelu_forward": ([_POINTER] + [_LENGTH] * 3 + [_POINTER], None),
    "gated_gelu_backward": ([_POINTER] * 2 + [_LENGTH] * 3 + [_POINTER], None),
    "group_norm_forward": (
        [_POINTER] * 3 + [_LENGTH] * 4 + [ctypes.c_float] + [_LENGTH] * 2 + [_POINTER] * 2,
        ctypes.c_int,
    ),
    "group_norm_backward": ([_POINTER] * 5 + [_LENGTH] * 6 + [_POINTER], ctypes.c_int),
    "winograd_image": ([_POINTER] + [_LENGTH] * 6 + [_POINTER, _LENGTH, _POINTER], ctypes.c_int),
    "winograd_products": ([_POINTER] * 2 + [_LENGTH] * 6 + [_POINTER, _LENGTH, _POINTER], None),
}
"""Arguments and result of each function in C. A result is 0, or not 0 where it failed."""


def _share_openmp() -> None:
    """Let libraries that are loaded from now on use torch's OpenMP: one set of threads, pinned once."""
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):  # in LD_PRELOAD, or shared by torch
        return
    openmp = [file for file in mapped_files() if Path(file).name.startswith(("libiomp5", "libgomp"))]
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
            f"the compiled kernels are for {' and '.join(PROCESSORS)}, not for this processor, which has "
            f"{instructions}; set training.attention to sdpa"
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
        raise BadInput(f"the compiled kernels do not load: {error}; set training.attention to sdpa") from None
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(loaded, f"sdtune_{name}")
        function.argtypes, function.restype = arguments, result
    if loaded.sdtune_attention_allow() != 0:
        raise BadInput(
            "this Linux kernel does not let processes use AMX, 5.16 or newer does; set training.attention to sdpa"
        )
    return loaded


def check() -> None:
    """Load the kernels now.

    Raises:
        BadInput: there are none for this processor, they are not compiled, do not load, or the operating system is too
            old for AMX.
    """
    _load()


def _operands(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *like_q: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The tensors, contiguous, and batch, heads, n, m, d. The C code checks nothing, so shapes are checked here."""
    tensors = (q, k, v, *like_q)
    shapes = [tuple(x.shape) for x in tensors]
    if any(x.dtype != torch.bfloat16 or x.dim() != 3 for x in tensors):
        raise ValueError(f"bf16 [batch, positions, channels], not {[(x.dtype, tuple(x.shape)) for x in tensors]}")
    batch, n, width = q.shape
    m = k.shape[1]
    if k.shape != (batch, m, width) or v.shape != k.shape or any(x.shape != q.shape for x in like_q):
        raise ValueError(f"these shapes do not fit together: {shapes}")
    if 0 in (*q.shape, m) or width % heads:
        raise ValueError(f"an empty tensor, or no {heads} heads of the same size: {shapes}")
    return tuple(x.contiguous() for x in tensors), (batch, heads, n, m, width // heads)


def _empty_results(q: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(len(q) * heads, q.shape[1], dtype=torch.float32)


@torch.library.custom_op("sdtune::attention_forward", mutates_args=(), device_types="cpu")
def attention_forward(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v of each head.

    Args:
        q: bf16 [batch, n, heads * d].
        k: bf16 [batch, m, heads * d].
        v: bf16 [batch, m, heads * d].
        heads: that share the last dimension.
        scale: usually d ** -0.5.

    Returns:
        The result, bf16 [batch, n, heads * d], with gradients for q, k and v; and what the backward pass needs, float32
        [batch * heads, n].

    Raises:
        ValueError: shapes or types do not fit.
        MemoryError: a few MB for each thread cannot be allocated.
    """
    (q, k, v), shape = _operands(q, k, v, heads)
    out, log_sums = _empty_results(q, heads)
    if _load().sdtune_attention_forward(
        *(x.data_ptr() for x in (q, k, v)), *shape, scale, torch.get_num_threads(),
        out.data_ptr(), log_sums.data_ptr(),
    ):  # fmt: skip
        raise MemoryError
    return out, log_sums


@torch.library.custom_op("sdtune::attention_backward", mutates_args=(), device_types="cpu")
def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, d_out: Tensor, log_sums: Tensor, heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attention_forward` for q, k and v, of their shapes; ``d_out`` is that of ``out``."""
    (q, k, v, out, d_out), shape = _operands(q, k, v, heads, out, d_out)
    if log_sums.shape != (len(q) * heads, q.shape[1]) or log_sums.dtype != torch.float32:
        raise ValueError(f"log_sums of another pass: {log_sums.dtype} {tuple(log_sums.shape)}")
    log_sums = log_sums.contiguous()
    gradients = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    if _load().sdtune_attention_backward(
        *(x.data_ptr() for x in (q, k, v, out, d_out, log_sums)), *shape, scale, torch.get_num_threads(),
        *(x.data_ptr() for x in gradients),
    ):  # fmt: skip
        raise MemoryError
    return gradients


@attention_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_results(q, heads)


@attention_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, d_out: Tensor, log_sums: Tensor, heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_for_backward(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, float], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, *ctx.arguments = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)  # log_sums has none


def _gradients(ctx: Any, d_out: Tensor, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, out, log_sums = ctx.saved_tensors
    return *attention_backward(q, k, v, out, d_out, log_sums, *ctx.arguments), None, None


attention_forward.register_autograd(_gradients, setup_context=_save_for_backward)
