"""Which rank failed first, and why: pure functions of what was recorded during an attempt."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sdtune.launch import rank_error
from sdtune.launch.rank_error import RankError

BAD_INPUT = 2
"""Exit code of a launch that cannot work, now or later."""
_SHOWN = 15  # lines of a rank's output that are shown when it recorded no error
_SHOWN_OF_LAUNCHER = 30
# torch's log of what is not an error, such as a host whose name no resolver knows
_WARNING = re.compile(r"\[[IW]\d{4} \S+ \S+:\d+\]")
_STOOD_STILL = 5.0  # seconds; a supervisor looks several times in one
# as dash and bash say it of a program that they have started
_KILLED_LAUNCHER = re.compile(r"(?:\S*mpirun: line \d+: +\d+ )?Killed(?: +mpiexec\.hydra.*)?")
# as mpiexec.hydra says that its proxy on a host has ended; the first is the cause, and the others follow
_PROXY_ENDED = re.compile(r"\[mpiexec@[^]]*\] Error: Downstream from host (\S+) exited abnormally")
# where a rank is that waits for others
_WAITS = re.compile(r"all_reduce|all_gather|barrier|broadcast|gather_object|wait_for_everyone|rendezvous|in reduce")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was recorded until an attempt ended."""

    hosts: Sequence[str]
    """Names of the hosts, in the order of their ranks."""
    addresses: Sequence[str]
    """Their addresses, by which mpirun calls them."""
    ranks_per_node: int
    """Ranks on each host."""
    exit_code: int | None
    """Of launch.sh; None while it still runs."""
    decision: str | None = None
    """Why the supervisor ends the attempt; None when launch.sh ended by itself."""
    culprit: int | None = None
    """The rank that the decision is about."""
    ended: Sequence[int] = ()
    """Ranks that have ended, in the order in which their agents reported it."""
    left: Collection[int] = ()
    """Those of them whose work was done."""
    lost_agents: Collection[int] = ()
    """Those of them whose agents were lost: they ended without a report. The rank may have lived."""
    out_of_memory: Collection[int] = ()
    """Those of them on whose host the Linux kernel killed a process for want of memory meanwhile."""
    ended_by_agent: Mapping[int, str] = field(default_factory=dict)
    """Those of them that their agents ended, and why."""
    stood_still: float = 0.0
    """The longest time for which the supervisor itself did nothing, in seconds."""
    errors: Mapping[int, RankError] = field(default_factory=dict)
    """What the ranks recorded themselves."""
    killed: Sequence[tuple[int, int]] = ()
    """Ranks and the signals that ended them, from Hydra's report."""
    stacks: Mapping[int, str] = field(default_factory=dict)
    """Stacks of the ranks, where they were asked for."""
    rank_lines: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """The last lines that each rank printed. For display only."""
    launcher_lines: Sequence[str] = ()
    """The last lines that launch.sh and mpirun printed. For display, and for a refusal of launch.sh."""
    launcher: str = "mpirun"
    """The program that starts the ranks."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.hosts) * self.ranks_per_node

    @property
    def no_rank_started(self) -> bool:
        """Whether nothing was received from any rank."""
        return not (self.rank_lines or self.errors or self.ended or self.killed)

    @property
    def launcher_was_killed(self) -> bool:
        """Whether the shell that Intel's mpirun is says that its ``mpiexec.hydra`` was killed, not a rank."""
        return any(map(_KILLED_LAUNCHER.fullmatch, self.launcher_lines)) and not self.killed

    @property
    def without_proxy(self) -> set[int]:
        """Ranks of the first host whose Hydra proxy has ended: it does so when a rank is gone that it answers."""
        first = next((found.group(1) for line in self.launcher_lines if (found := _PROXY_ENDED.match(line))), None)
        places = [number for number, names in enumerate(zip(self.hosts, self.addresses, strict=True)) if first in names]
        return {rank for rank in range(self.world_size) if rank // self.ranks_per_node in places}

    @property
    def unheard(self) -> list[int]:
        """Ranks that ended before their agents watched them, for which Hydra has ended the job (:mod:`.hydra`).

        Those come first whose rank.sh printed an error, then those whose proxy ended, then those of which Hydra
        reports a signal; it does not report how each rank on each host ended.
        """
        if self.exit_code is None or self.errors or self.lost_agents:
            return []
        if self.no_rank_started and not self.without_proxy:
            return []
        killed = [rank for rank, _ in self.killed]
        absent = [rank for rank in range(self.world_size) if rank not in self.ended]
        return sorted(
            absent,
            key=lambda rank: (
                not _said(self.rank_lines.get(rank, ())),
                rank not in self.without_proxy,
                rank not in killed,
            ),
        )

    def host_of(self, rank: int) -> str:
        """Name of a rank's host."""
        return self.hosts[rank // self.ranks_per_node]

    def place_of(self, rank: int) -> str:
        """A rank and its host, for messages."""
        return f"rank {rank} on {self.host_of(rank)}"


@dataclass(kw_only=True)
class Outcome:
    """How an attempt ended."""

    code: int
    """Exit code of launch.sh; -1 when it was ended."""
    why: str
    """One line, with rank and host where they are known."""
    lines: list[str] = field(default_factory=list)
    """Details: the traceback or stack of the rank, or the last lines that it printed."""
    retry: bool = True
    """Whether another attempt may end differently."""
    rank: int | None = None
    """The rank that failed first."""
    host: str | None = None
    """Name of its host."""
    used_by: dict[str, str] = field(default_factory=dict)
    """When it did not start because other runs use its hosts: {host: those runs}."""
    port_taken: bool = False
    """Whether it did not start because a program took the port where the ranks meet."""
    unconfirmed: list[str] = field(default_factory=list)
    """Hosts that did not confirm the end of their ranks. They were cut off, and their agents end the ranks."""


def is_explained(evidence: Evidence) -> bool:
    """Whether the cause is known already, so that reports which are still on their way need not be awaited."""
    return bool(evidence.lost_agents) or any(not error.is_consequence for error in evidence.errors.values())


def judge(evidence: Evidence) -> Outcome:
    """Decide who failed first, and how."""
    code = -1 if evidence.exit_code is None else evidence.exit_code
    if evidence.decision is not None:
        return _outcome(evidence, code, evidence.culprit, evidence.decision)
    if code == 0:
        return Outcome(code=0, why="finished")
    launcher_lines = list(evidence.launcher_lines)
    if code == BAD_INPUT and evidence.no_rank_started:  # launch.sh itself refused
        refusals = [line.removeprefix("error: ") for line in launcher_lines if line.startswith("error: ")]
        why = refusals[0] if refusals else "launch.sh refused"
        return Outcome(code=code, why=why, lines=launcher_lines[-_SHOWN_OF_LAUNCHER:], retry=False)
    final = [rank for rank, error in sorted(evidence.errors.items()) if error.is_final]
    rank = final[0] if final else first_cause(evidence)
    outcome = _outcome(evidence, code, rank, describe(evidence, rank))
    outcome.retry = not final
    if code < 0 and any(evidence.errors[one].kind == rank_error.BAD_INPUT for one in final):
        outcome.code = BAD_INPUT  # as launch.sh itself ends, unless ranks still wait for the one that refused
    outcome.used_by = {evidence.host_of(one): by for one in final if (by := evidence.errors[one].used_by)}
    outcome.port_taken = any(evidence.errors[one].is_port_taken for one in final)
    return outcome


def _outcome(evidence: Evidence, code: int, rank: int | None, why: str) -> Outcome:
    lines: list[str] = []
    if rank is not None:
        if rank in evidence.errors:
            lines = evidence.errors[rank].lines
        elif rank in evidence.stacks:
            lines = evidence.stacks[rank].splitlines()
        else:
            lines = [line for line in evidence.rank_lines.get(rank, ()) if not _WARNING.match(line)][-_SHOWN:]
    return Outcome(
        code=code,
        why=why,
        lines=lines or list(evidence.launcher_lines)[-_SHOWN_OF_LAUNCHER:],
        rank=rank,
        host=None if rank is None else evidence.host_of(rank),
    )


def is_consequence(evidence: Evidence, rank: int) -> bool:
    """Whether a rank says of its end that another has left, of which more may be on its way."""
    return rank in evidence.errors and evidence.errors[rank].is_consequence


def first_cause(evidence: Evidence) -> int | None:
    """The rank that ended first; None when nothing is known.

    An error that says more than that another rank has left comes before a rank of which only such an error is known,
    and before one whose agent was lost, which proves nothing about the rank. So does a rank that ended before it had an
    agent. After a time in which the supervisor
    itself did nothing, the order is not known: then a rank that its agent ended explains the others.
    """
    causes = [rank for rank, error in sorted(evidence.errors.items()) if not error.is_consequence]
    if evidence.ended_by_agent and evidence.stood_still >= _STOOD_STILL:
        return next(iter(causes or evidence.ended_by_agent))
    if evidence.launcher_was_killed and not causes:
        return None  # the ranks end with it
    if evidence.unheard:
        return evidence.unheard[0]
    early = [rank for rank in evidence.ended if rank not in evidence.left]
    if early:
        first = early[0]
        weak = first in evidence.lost_agents or (first in evidence.errors and first not in causes)
        return causes[0] if causes and weak else first
    killed = [rank for rank, _ in evidence.killed if rank not in evidence.errors]
    return next(iter(causes + killed), None)


def describe(evidence: Evidence, rank: int | None) -> str:
    """How a rank ended, in one line."""
    if rank is None:
        return _describe_launcher(evidence)
    if rank in evidence.errors:
        return f"{evidence.place_of(rank)}: {evidence.errors[rank].summary}"
    if rank in evidence.lost_agents:
        return describe_lost_agents(evidence, rank)
    if rank in evidence.ended_by_agent:
        return f"{evidence.place_of(rank)} was ended by its agent: {evidence.ended_by_agent[rank]}{_pause(evidence)}"
    if rank in evidence.unheard and (said := _said(evidence.rank_lines.get(rank, ()))):
        return f"{evidence.place_of(rank)}: {said}"
    if rank in evidence.unheard and rank in evidence.without_proxy:
        return _describe_without_proxy(evidence, rank)
    number = dict(evidence.killed).get(rank)
    memory = ", for want of memory: the Linux kernel did it" if rank in evidence.out_of_memory else ""
    alike = [one for one in evidence.unheard if dict(evidence.killed).get(one) == number]
    if number is not None and len(alike) > 1:  # Hydra has ended the others before they had agents, too
        return f"one of ranks {', '.join(map(str, sorted(alike)))} was killed by signal {number} before it had an agent"
    if number is not None:
        return f"{evidence.place_of(rank)} was killed by signal {number}{memory}"
    if memory:
        return f"{evidence.place_of(rank)} was killed{memory}"
    if rank in evidence.unheard:
        return f"{evidence.place_of(rank)} ended before its agent watched it, without an error message"
    return f"{evidence.place_of(rank)} ended without an error message"


def _describe_without_proxy(evidence: Evidence, rank: int) -> str:
    """How a rank ended with Hydra's proxy on its host, which does not tell which of several it was."""
    host = evidence.host_of(rank)
    alike = sorted(one for one in evidence.unheard if evidence.host_of(one) == host)
    place = evidence.place_of(rank) if len(alike) == 1 else f"one of ranks {', '.join(map(str, alike))} on {host}"
    return (
        f"{place} ended before it had an agent, and mpirun's proxy there too, as when the rank is killed as it starts"
    )


def _said(lines: Sequence[str]) -> str:
    """The first error that a shell script of ours printed."""
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")


def _describe_launcher(evidence: Evidence) -> str:
    """How launch.sh or the program that starts the ranks ended, when no rank is known to have failed."""
    from_srun = [line for line in evidence.launcher_lines if line.startswith("srun: error: ")]
    if from_srun and evidence.no_rank_started:
        return f"srun starts no rank: {from_srun[0].removeprefix('srun: error: ')}"
    if evidence.no_rank_started and (said := _said(evidence.launcher_lines)):
        return said
    if evidence.launcher_was_killed:
        return f"{evidence.launcher} was killed by signal 9"
    return f"{evidence.launcher} ended with code {evidence.exit_code}"


def describe_lost_agents(evidence: Evidence, rank: int) -> str:
    """What is known when the agent of a rank was lost; nothing is known of the rank."""
    host = evidence.host_of(rank)
    on_host = {r for r in range(evidence.world_size) if evidence.host_of(r) == host}
    if len(on_host) > 1 and on_host <= set(evidence.lost_agents):
        return f"all agents on {host} ended at once, as when all processes of a host are killed"
    return f"the agent of {evidence.place_of(rank)} ended without a report, as when it or all of its host is killed"


def _pause(evidence: Evidence) -> str:
    if evidence.stood_still < _STOOD_STILL:
        return ""
    return f"; the supervisor itself did not run for {evidence.stood_still:.0f} s, as after SIGSTOP"


def hung_rank(
    *, stopped: Collection[int], absent: Collection[int], stacks: Mapping[int, str]
) -> tuple[int, str] | None:
    """The rank for which the others wait, and what it does.

    Args:
        stopped: ranks whose process is stopped.
        absent: ranks whose agent has never connected.
        stacks: stacks of the ranks that answered.
    """
    elsewhere = [rank for rank, stack in stacks.items() if stack and not _WAITS.search(stack)]
    for ranks, how in (
        (stopped, "is stopped, as by SIGSTOP"),
        (absent, "never joined"),
        (elsewhere, "is not in the collective operation in which the others wait"),
    ):
        if ranks:
            return min(ranks), how
    return None
