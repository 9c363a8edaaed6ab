"""Commands on other hosts of the cluster, by ssh with the cluster's own key."""

import shlex
from collections.abc import Callable, Sequence

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=5")
# a connection without an answer is closed after ten seconds
_ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2")


Reach = Callable[[str, Sequence[str]], list[str]]
"""The command line that runs a command at an address."""


def command_on(address: str, command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` at ``address``. Exit code 255 is ssh's own: the host does not answer."""
    return [*_SSH, *_ALIVE, address, f"exec {shlex.join(command)}"]
