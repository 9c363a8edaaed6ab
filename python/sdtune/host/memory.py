"""Memory: what this process may still take (a limit of a cgroup counts), and what it has held."""

import ctypes
import resource
from pathlib import Path

from standalone.limits import available_memory as available_bytes
from standalone.limits import total_memory as total_bytes

__all__ = ["available_bytes", "lifetime_peak_rss_bytes", "peak_rss_bytes", "reset_peak_rss", "total_bytes"]


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
