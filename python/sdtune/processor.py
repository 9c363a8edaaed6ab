"""What this host's processor and this process's memory say of themselves."""

from pathlib import Path

_SETS = {"AMX": "amx_bf16", "AVX-512-BF16": "avx512_bf16", "AVX-512": "avx512f", "AVX2": "avx2"}
"""Instruction sets that decide over the speed of a step, fastest first, and the flag that tells of each."""
_LIBRARIES = ("libtcmalloc", "libiomp5", "libintel-ext-pt-cpu", "libccl.")


def instruction_set(cpuinfo: str | None = None) -> str:
    """AMX, AVX-512-BF16, AVX-512, AVX2, or none of them; of ``cpuinfo`` in place of /proc/cpuinfo."""
    text = cpuinfo if cpuinfo is not None else Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return next((name for name, flag in _SETS.items() if flag in flags), "none of AVX2, AVX-512, AMX")


def libraries() -> list[str]:
    """Files of gperftools' allocator, Intel's OpenMP, its extension and oneCCL that this process has mapped.

    What the kernel says, not what was asked for: a library in LD_PRELOAD that is missing is not among them.
    """
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    return sorted(file for file in files if Path(file).name.startswith(_LIBRARIES))
