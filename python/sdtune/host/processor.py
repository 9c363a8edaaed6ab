"""What this host's processor and this process's memory say of themselves."""

import os
from pathlib import Path

_SETS = {"AMX": "amx_bf16", "AVX-512-BF16": "avx512_bf16", "AVX-512": "avx512f", "AVX2": "avx2"}
"""Instruction sets that decide over the speed of a step, fastest first, and the flag that tells of each."""
_LIMITS = {
    "AMX": "AMX", "AVX10": "AVX-512-BF16", "FP16": "AVX-512-BF16", "BF16": "AVX-512-BF16",
    "AVX512": "AVX-512", "AVX2": "AVX2",
}  # fmt: skip
"""What a value of ONEDNN_MAX_CPU_ISA that holds such a word lets torch's products use; the first that is found."""
_LIBRARIES = ("libtcmalloc", "libiomp5", "libintel-ext-pt-cpu", "libccl.", "attention-")


def instruction_set(cpuinfo: str | None = None) -> str:
    """AMX, AVX-512-BF16, AVX-512, AVX2, or none of them: the best that there is and ONEDNN_MAX_CPU_ISA leaves in use.

    Args:
        cpuinfo: in place of /proc/cpuinfo.
    """
    text = cpuinfo if cpuinfo is not None else Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    sets = list(_SETS)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit not in ("", "ALL", "DEFAULT"):
        best = next((name for word, name in _LIMITS.items() if word in limit), None)
        sets = sets[sets.index(best) :] if best else []
    return next((name for name in sets if _SETS[name] in flags), "none of AVX2, AVX-512, AMX")


def libraries() -> list[str]:
    """Files of gperftools' allocator, Intel's OpenMP, its extension, oneCCL, our kernels that this process has mapped.

    What the kernel says, not what was asked for: a library in LD_PRELOAD that is missing is not among them.
    """
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    return sorted(file for file in files if Path(file).name.startswith(_LIBRARIES))
