"""The libraries that this process has mapped: what is in use, not what was asked for."""

from pathlib import Path

_KNOWN = ("libtcmalloc", "libiomp5", "libintel-ext-pt-cpu", "libccl.", "attention-")


def mapped_files() -> set[str]:
    """Paths of all files that this process has mapped."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if "/" in line}


def mapped_libraries() -> list[str]:
    """Mapped files of those that decide speed: tcmalloc, Intel OpenMP, IPEX, oneCCL, our compiled kernels.

    A library in LD_PRELOAD that does not exist is not mapped, and so is not listed.
    """
    return sorted(file for file in mapped_files() if Path(file).name.startswith(_KNOWN))


def has_tcmalloc() -> bool:
    """Whether gperftools' allocator is loaded."""
    return any("tcmalloc" in file for file in mapped_files())
