"""Start a run under a supervisor, and what the supervisor starts on the hosts.

To see how far a run is, or to stop it: standalone/run_state.py.
"""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from sdtune import cli
from sdtune.files import follow_mode


def _run_folder(text: str) -> Path:
    return Path(text).resolve()


def parser() -> argparse.ArgumentParser:
    """The subcommands."""
    top = argparse.ArgumentParser(prog="python -m sdtune.launch", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("start", "start the supervisor in the background, unless it is running; print what was done, as JSON"),
        ("run", "run the supervisor in the foreground, as a batch system needs it. Exit codes: 0 finished, 1 failed, "
                "2 cannot work, 3 stopped on request"),
    ):  # fmt: skip
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--call", metavar="ID", help="name of this call; files staged under it are put in place")
        text = "of those in its launch files, the hosts that the run gets, this one first"
        command.add_argument("--hosts", default="", metavar="NAME,NAME", help=text)
        command.add_argument("run", type=_run_folder, metavar="RUN", help="the run folder")
        command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of launch.sh")
    for name, text in (
        ("side-by-side", "start several runs, which share the hosts; standard input is the request, as JSON"),
        ("deal", "deal the hosts out to them, in the foreground"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("runs", type=_run_folder, metavar="RUNS", help="the folder of all runs")
    text = "kill the processes that a run has left on this host; print for how many seconds the host has been up"
    command = commands.add_parser("sweep", help=text, description=text)
    command.add_argument("run", type=_run_folder, metavar="RUN", help="the run folder")
    text = "become the program COMMAND, with a port and a token for its ranks to meet; needs the variables of env.sh"
    command = commands.add_parser("meet", help=text, description=text)
    command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")
    text = "put staged launch files in place on this host"
    command = commands.add_parser("place", help=text, description=text)
    command.add_argument("run", type=_run_folder, metavar="RUN", help="the run folder")
    command.add_argument("staged", metavar="ID", help="the name under which they were staged")
    text = "the other runs that use cores of this host, as JSON"
    command = commands.add_parser("shares", help=text, description=text)
    command.add_argument("run", type=_run_folder, metavar="RUN", help="the run folder")
    command.add_argument("cores", nargs="?", default="", metavar="CORES", help="those that count, such as 0-13")
    text = "print the cores of a rank that Slurm has started, as 0,1; rank.sh calls it"
    command = commands.add_parser("cores", help=text, description=text)
    for name in ("local_rank", "ranks", "threads"):
        command.add_argument(name, type=int, metavar=name.upper())
    text = "watch one rank; rank.sh calls it, with standard input as the pipe from the rank"
    command = commands.add_parser("agent", help=text, description=text)
    command.add_argument("rank", type=int, metavar="RANK", help="number of the rank")
    command.add_argument("pid", type=int, metavar="PID", help="process of the rank")
    command.add_argument("launcher", type=int, metavar="LAUNCHER", help="process that started it")
    return top


def main() -> None:
    """Do what the command line says; an agent starts in little time, so each command imports only what it needs."""
    options = parser().parse_args()
    if options.command == "agent":
        from sdtune.launch import agent

        agent.main(options.rank, options.pid, options.launcher)
    elif options.command == "sweep":
        from sdtune.launch import processes
        from standalone import run_state

        processes.sweep(str(options.run))
        print(run_state.uptime())
    elif options.command == "cores":
        from sdtune.host.numa import first_siblings
        from sdtune.launch.binding import cores_of_rank

        allowed = first_siblings(os.sched_getaffinity(0))
        print(",".join(map(str, cores_of_rank(allowed, options.local_rank, options.ranks, options.threads))))
    elif options.command == "start":
        follow_mode(options.run)
        from sdtune.launch import detach

        detach.report(options.run, options.arguments, options.call, options.hosts)
    elif options.command in ("side-by-side", "deal"):
        follow_mode(options.runs)
        from sdtune.launch import side_by_side
        from sdtune.launch.dealing import Request

        if options.command == "deal":
            side_by_side.deal(options.runs)
        else:
            request = Request(**json.load(sys.stdin))
            print(json.dumps({"did": side_by_side.start(options.runs, request)}))
    elif options.command == "meet":
        from sdtune.launch import meeting

        meeting.start(options.arguments)
    elif options.command == "place":
        from standalone import launch_files

        launch_files.place(options.run, options.staged)
    elif options.command == "shares":
        from sdtune.launch import shared_hosts

        print(json.dumps(shared_hosts.others_here(str(options.run), options.cores)))
    else:
        follow_mode(options.run)
        _supervise(options.run, options.arguments, options.call, [name for name in options.hosts.split(",") if name])


def _supervise(run: Path, arguments: list[str], call: str | None, hosts: list[str]) -> None:
    from sdtune.files import hold_lock
    from sdtune.launch import staging, submit, supervisor
    from sdtune.launch.allocation import Allocation
    from sdtune.launch.batch_job import BatchJob
    from standalone import run_state

    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(run / run_state.SUPERVISOR_LOCK, timeout=1))
        except BlockingIOError:
            sys.exit(f"error: {run}: another supervisor is at work")
        if submit.is_for_slurm(run, call):
            sys.exit(BatchJob(run, arguments, Allocation.of(os.environ)).supervise())
        staging.check(run, call, arguments)
        if hosts:
            staging.choose_hosts(run, call, hosts)
        if call is not None:
            staging.place_on_all_hosts(run, call)
        sys.exit(supervisor.Supervisor(run, arguments, call).supervise())


if __name__ == "__main__":
    cli.run(main)
