"""What makes the ranks of one attempt meet each other, and nobody else: a token and a port of their own.

``launch.sh`` starts mpirun through :func:`start`. The token is random, and only in the environment of the ranks, never
on a command line. The port is claimed on this host, where rank 0 will listen, until the last process of the attempt on
this host has ended: mpirun and the ranks inherit the claim.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sdtune.errors import BadInput
from sdtune.launch import variables
from sdtune.launch.allocation import Allocation
from sdtune.launch.binding import started_by_slurm
from sdtune.launch.state import Plan
from standalone import host_claims

TOKEN = "SDTUNE_TOKEN"
"""Environment variable: the secret of this attempt. The supervisor makes it, or else :func:`start`."""
ATTEMPT = "SDTUNE_ATTEMPT"
"""Environment variable: number of this attempt."""
PORTS = "SDTUNE_PORTS"
"""Environment variable, set by env.sh: a launch takes the first of these ports that is free; ``29500-29599``."""


def digest_of(token: str) -> str:
    """What may be shown of a token: it tells attempts apart, and does not let anyone take part."""
    return hashlib.sha256(token.encode()).hexdigest()[:16] if token else ""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The attempt that this process belongs to."""

    number: int
    """From 1."""
    token: str
    """Its secret; empty for ranks that were started without launch.sh."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Attempt":
        """Read it from environment variables."""
        return cls(number=variables.number(ATTEMPT, 1, environment), token=environment.get(TOKEN, ""))

    @property
    def digest(self) -> str:
        """See :func:`digest_of`."""
        return digest_of(self.token)


def start(command: list[str]) -> NoReturn:
    """Become the program ``command``, with a token and a port.

    Raises:
        BadInput: no port can be had.
    """
    os.environ.setdefault(TOKEN, secrets.token_hex(16))
    os.environ.setdefault(ATTEMPT, "1")
    ports = variables.numbers(PORTS)
    if not ports:
        raise BadInput(f"{PORTS} is not set; start launch.sh in the run folder, which reads it from env.sh")
    got = host_claims.claim_port(ports)
    if got is None:
        remedy = "wait for the runs that use them, or widen launch_config_port_range"
        if len(ports) == 1:
            remedy = "wait for its end, or leave launch_config_master_port at 0, so that a free one is taken"
        why = host_claims.why_no_port(ports) or "none was free a moment ago"
        raise BadInput(f"{os.uname().nodename}: {why}, and the ranks have to meet at one; {remedy}")
    if "MASTER_ADDR" not in os.environ:  # the hosts were chosen when the run started, and env.sh names none
        hosts = Allocation.of(os.environ).hosts if started_by_slurm() else Plan.read(Path.cwd()).hosts
        os.environ["MASTER_ADDR"] = next(iter(hosts.values()))
    port, claim = got
    claim.set_inheritable(True)
    os.environ["MASTER_PORT"] = str(port)
    os.execvp(command[0], command)
