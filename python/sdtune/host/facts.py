"""Host facts: what a reader has to know of a host to understand a run's speed, and to repeat the run."""

import platform
from pathlib import Path
from typing import Any

import torch

from sdtune.host.libraries import has_tcmalloc, mapped_libraries
from sdtune.host.memory import total_bytes
from sdtune.host.processor import describe_processor, instruction_set


def describe_host() -> dict[str, Any]:
    """Name, versions, the instruction set in use, mapped libraries and threads of this process."""
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "instruction_set": instruction_set(),
        "libraries": mapped_libraries(),
        "threads_per_rank": torch.get_num_threads(),
    }


def describe_hardware(interface: str | None) -> dict[str, Any]:
    """Processor, memory, network link and allocator.

    Args:
        interface: the network interface that this process uses, if any.
    """
    return {
        **describe_processor(),
        "memory_bytes": total_bytes(),
        "interface": interface,
        "link_mbit": link_mbit(interface),
        "tcmalloc": has_tcmalloc(),
    }


def link_mbit(interface: str | None, devices: Path = Path("/sys/class/net")) -> int | None:
    """Speed of a network interface in Mbit/s; None where the interface reports none, as loopback.

    Args:
        interface: its name, or None.
        devices: in place of /sys/class/net.
    """
    if interface is None:
        return None
    try:
        speed = int((devices / interface / "speed").read_text(encoding="ascii"))
    except (OSError, ValueError):  # Linux refuses to read the speed of an interface that has no link
        return None
    return speed if speed > 0 else None


def revision(package: Path = Path(__file__).parents[1]) -> str | None:
    """The code's revision, which provisioning writes into a file beside it; None for code that was not provisioned."""
    file = package.parents[1] / "revision"
    return file.read_text(encoding="ascii").strip() if file.is_file() else None
