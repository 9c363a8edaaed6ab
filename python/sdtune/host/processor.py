"""The processor: its model and cores, the instruction set that decides speed, and whether it computes in bf16.

The one place that reads /proc/cpuinfo. It imports no torch, so that a check takes no seconds.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

BF16_FLAGS = ("avx512_bf16", "amx_bf16")
"""Processor flags of the instructions that compute in bf16."""
FEATURES = ("avx2", "avx512f", "avx512_vnni", *BF16_FLAGS, "amx_int8")
"""Processor flags that decide how fast this host trains and generates."""
_SETS = {"AMX": "amx_bf16", "AVX-512-BF16": "avx512_bf16", "AVX-512": "avx512f", "AVX2": "avx2"}
"""Instruction sets that decide the time of a step, fastest first, each with its processor flag."""
_LIMITS = {
    "AMX": "AMX", "AVX10": "AVX-512-BF16", "FP16": "AVX-512-BF16", "BF16": "AVX-512-BF16",
    "AVX512": "AVX-512", "AVX2": "AVX2",
}  # fmt: skip
"""The best instruction set that a value of ONEDNN_MAX_CPU_ISA with this word allows; the first word found counts."""


def cpuinfo() -> str:
    """The text of /proc/cpuinfo."""
    return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")


def cpu_flags(text: str | None = None) -> list[str]:
    """Flags of the first CPU; none where the file has no such line, as on processors that are not x86.

    Args:
        text: in place of /proc/cpuinfo.
    """
    lines = (cpuinfo() if text is None else text).splitlines()
    return next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])


def has_bf16(flags: Collection[str] | None = None) -> bool:
    """Whether a processor computes in bf16: with AVX-512 or with AMX.

    What it *may* use, which ONEDNN_MAX_CPU_ISA limits, is in :func:`instruction_set`.

    Args:
        flags: of another processor, in place of this host's.
    """
    return not set(BF16_FLAGS).isdisjoint(cpu_flags() if flags is None else flags)


def instruction_set(text: str | None = None) -> str:
    """The best of AMX, AVX-512-BF16, AVX-512, AVX2 that this processor has and ONEDNN_MAX_CPU_ISA allows, or none.

    Args:
        text: in place of /proc/cpuinfo.
    """
    flags, sets = cpu_flags(text), list(_SETS)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit not in ("", "ALL", "DEFAULT"):
        best = next((name for word, name in _LIMITS.items() if word in limit), None)
        sets = sets[sets.index(best) :] if best else []
    return next((name for name in sets if _SETS[name] in flags), "none of AVX2, AVX-512, AMX")


def describe_processor(text: str | None = None) -> dict[str, Any]:
    """CPU model (the machine's architecture where the file names none), physical cores, and :data:`FEATURES`.

    Args:
        text: in place of /proc/cpuinfo.
    """
    text = cpuinfo() if text is None else text
    model, cores = os.uname().machine, set()
    for block in text.split("\n\n"):
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in block.splitlines())}
        if "processor" not in fields:
            continue
        model = fields.get("model name", model)
        cores.add((fields.get("physical id"), fields.get("core id", fields["processor"])))
    flags = cpu_flags(text)
    return {"cpu": model, "cores": len(cores), "features": [f for f in FEATURES if f in flags]}
