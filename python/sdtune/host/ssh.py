"""Commands on other hosts of the cluster, by ssh with the cluster's own key."""

import shlex
from collections.abc import Callable, Sequence

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=5")
# a connection without an answer is closed after ten seconds
_ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2")

SSH_FAILED = 255
"""ssh's own exit code: the host does not answer."""

Reach = Callable[[str, Sequence[str]], list[str]]
"""The command line that runs a command at an address."""


def command_on(address: str, command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` at ``address``. See :data:`SSH_FAILED`."""
    return [*_SSH, *_ALIVE, address, f"exec {shlex.join(command)}"]
