"""Commands on other hosts of the cluster, over the ssh mesh."""

import shlex
from collections.abc import Sequence

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=5")
# a host that was cut off is given up after ten seconds
_ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2")


def command_on(address: str, command: Sequence[str]) -> list[str]:
    """What runs ``command`` at ``address``; ssh itself ends with 255 where that host does not answer."""
    return [*_SSH, *_ALIVE, address, f"exec {shlex.join(command)}"]
