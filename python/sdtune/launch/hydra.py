"""What a rank tells Hydra, so that Hydra ends the other ranks when this one ends early, as it does for MPI programs.

Hydra leaves the others alone when a program ends that never said that it is one of MPI; they would wait for it until a
timeout. So ``rank.sh`` says so in place of the rank, as its first act (``cmd=init`` on the file descriptor PMI_FD).
Then an end without ``cmd=finalize`` ends the job on all hosts. Under a supervisor, ``rank.sh`` says the latter when it
has started the agent of the rank: from there on the supervisor ends the others itself, and knows from the agents which
rank was the first. Without one, the rank does, when its work is done. With oneCCL the rank itself speaks to Hydra.
"""

import contextlib
import os

MARK = "SDTUNE_PMI"
"""Environment variable: set by rank.sh when the rank has to say ``cmd=finalize``."""


def finalize() -> None:
    """Tell Hydra that this rank ends because its work is done."""
    if os.environ.pop(MARK, None) is None:
        return
    with contextlib.suppress(OSError, KeyError, ValueError):  # Hydra is gone, and with it whom to tell
        descriptor = int(os.environ["PMI_FD"])
        os.write(descriptor, b"cmd=finalize\n")
        os.read(descriptor, 1024)
