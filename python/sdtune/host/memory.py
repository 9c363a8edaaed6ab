"""Memory: what this host has left, and what this process has held."""

import ctypes
import os
import resource
from pathlib import Path


def total_bytes() -> int:
    """Physical memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes() -> int:
    """Memory that can be allocated without swapping, as the Linux kernel estimates it."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(value.split()[0])
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def reset_peak_rss() -> None:
    """Let :func:`peak_rss_bytes` count from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_rss_bytes() -> int:
    """Peak resident memory of this process since :func:`reset_peak_rss`, mapped files included."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM")


def lifetime_peak_rss_bytes() -> int:
    """Peak resident memory of this process since its start; :func:`reset_peak_rss` does not change it."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def release_free_memory() -> None:
    """Return freed memory to the operating system. Allocators keep it, but ranks share the memory of a host."""
    process = ctypes.CDLL(None)
    if hasattr(process, "MallocExtension_ReleaseFreeMemory"):  # gperftools is preloaded
        process.MallocExtension_ReleaseFreeMemory()
    else:
        process.malloc_trim(0)
