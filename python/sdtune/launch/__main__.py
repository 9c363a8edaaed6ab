"""The supervisor of a run, and what it starts on the hosts.

    python -m sdtune.launch start RUN [ARGUMENTS]   start it in the background, unless it is there; prints what it did
    python -m sdtune.launch run RUN [ARGUMENTS]     run it in the foreground, as a batch system would
    python -m sdtune.launch sweep RUN               kill what the run has left on this host

ARGUMENTS go to launch.sh. Exit code of ``run``: 0 finished, 1 failed, 2 cannot work, 3 stopped on request.
rank.sh calls ``guard RANK_PID LAUNCHER_PID``. To look at a run or to stop it: standalone/run_state.py.
"""

import sys
from pathlib import Path

from sdtune import cli


def main() -> None:
    """See above."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    command, target, *arguments = sys.argv[1:]
    if command == "guard":
        from sdtune.launch import agent

        agent.main(int(target), int(arguments[0]))
    elif command == "sweep":
        from sdtune.launch import agent

        agent.sweep(str(Path(target).resolve()))
    elif command == "start":
        from sdtune.launch import detach

        detach.report(Path(target).resolve(), arguments)
    elif command == "run":
        from sdtune.launch import supervisor

        run = Path(target).resolve()
        if supervisor.hold_lock(run) is None:
            sys.exit(f"error: {run}: another supervisor is at work")
        sys.exit(supervisor.Supervisor(run, arguments).supervise())
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    cli.run(main)
