"""One attempt of a run: from the start of launch.sh to the end of the last process on all hosts."""

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from sdtune.launch import endpoint, failure, meeting, rank_error
from sdtune.launch.agent_server import AgentServer
from sdtune.launch.failure import Evidence, Outcome
from sdtune.launch.launcher_output import LauncherOutput, killed_ranks
from sdtune.launch.lost_hosts import first_silent
from sdtune.launch.processes import sweep
from sdtune.launch.state import Plan
from sdtune.launch.wire import WHERE
from standalone import run_state

_TICK = 0.25  # seconds between two looks
_ENDING = 10.0  # seconds for ranks and agents to end, or to report, before the next measure
_REPORTING = 3.0  # after a rank has ended early, for mpirun to end and for others to report
_EXPLAINED = 2.0  # seconds; when all processes of a host are killed, mpirun ends before
_REACHABLE = 5.0  # an agent that sent something in so many seconds can still confirm the end of its rank


class Attempt:
    """The processes of one launch, and the connections to their agents.

    Attributes:
        token: secret of this attempt, which its ranks know, see :mod:`sdtune.launch.meeting`.
        host_lost: whether it was ended because a host, or the agents there, were not heard of any more.
    """

    def __init__(self, run: Path, plan: Plan, hosts: dict[str, str], arguments: list[str], number: int = 1) -> None:
        self.run, self.plan, self.hosts = run, plan, list(hosts.items())
        self.world_size = len(hosts) * plan.ranks_per_node
        self.number, self.token = number, secrets.token_hex(16)
        rank_error.remove_all(run)
        self.selector = selectors.DefaultSelector()
        self.agents = AgentServer(
            endpoint.listen(run, list(hosts.values())),
            self.world_size,
            self.selector,
            on_error=lambda error: rank_error.write(run, error),
        )
        self.process = self._launch(arguments)
        assert self.process.stdout is not None
        self.output = LauncherOutput(self.process.stdout, run / "logs" / "launch.log", plan.program)
        self.selector.register(self.process.stdout, selectors.EVENT_READ, self._read_output)
        self.progressed, self.began = time.monotonic(), time.time()
        self.mark, self.made_step = self._metrics_mark(), False
        self.early_end: float | None = None
        """Monotonic time at which a rank was seen to have ended before its work was done."""
        self.looked, self.stood_still = time.monotonic(), 0.0
        self.decision: str | None = None
        self.host_lost = False
        self.culprit: int | None = None

    def _launch(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            WHERE: f"{self.agents.address},{self.plan.host_timeout},{self.agents.token}",
            meeting.TOKEN: self.token,
            meeting.ATTEMPT: str(self.number),
        }
        if len(self.hosts) < len(self.plan.hosts):  # never with Slurm, where the plan names none
            nodes = self.run / "nodefile.fewer"
            nodes.write_text("".join(f"{address}\n" for _, address in self.hosts), encoding="utf-8")
            environment |= {"SDTUNE_NODEFILE": nodes.name, "SDTUNE_WORLD_SIZE": str(self.world_size)}
        # setpriv: if the supervisor is killed, the Linux kernel kills mpirun, and with it the ranks on all hosts
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(self.run / "launch.sh"), *arguments],
            cwd=self.run,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _read_output(self) -> None:
        self.output.read()
        if self.output.at_end:
            self.selector.unregister(self.output.pipe)

    def _metrics_mark(self) -> tuple[int, int]:
        """Changes whenever something is written to metrics.jsonl."""
        try:
            status = (self.run / "metrics.jsonl").stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_ino, status.st_mtime_ns

    def _listen(self, seconds: float) -> None:
        for key, _ in self.selector.select(seconds):
            key.data()
        self.agents.drop_old()
        now = time.monotonic()
        self.looked, self.stood_still = now, max(self.stood_still, now - self.looked)

    def follow(self, interrupted: Callable[[], str | None]) -> Outcome:
        """Wait until the job ends, or has to be ended; then end what is left of it.

        Args:
            interrupted: says why the attempt has to be ended at once, or None.
        """
        while self.decision is None and self.process.poll() is None and not self._ended_early():
            now = time.monotonic()  # before the sockets are read: what lies there unread is no silence
            self._listen(_TICK)
            if (mark := self._metrics_mark()) != self.mark:
                self.mark, self.progressed = mark, now
                self.made_step = self.made_step or "step" in run_state.progress(self.run, self.began)
            self.decision = interrupted() or self._silent_host(now) or self._lost_agent(now) or self._hung(now)
        code = self.process.poll()
        if self.decision is None and code is not None and code != 0:
            self._await_reports()
        unconfirmed = self.end()
        outcome = failure.judge(self._evidence(code))  # Hydra reports the signals when all ranks have ended
        outcome.unconfirmed = unconfirmed
        return outcome

    def _ended_early(self) -> bool:
        """Whether a rank has ended before its work was done, and mpirun had time to end by itself since."""
        early = [rank for rank in self.agents.ended if rank not in self.agents.left | self.agents.lost.keys()]
        if not early:
            return False
        if self.early_end is None:
            self.early_end = time.monotonic()
        cause_is_known = not failure.is_consequence(self._evidence(None), early[0])
        return time.monotonic() - self.early_end > (_REPORTING if cause_is_known else _ENDING)

    def _absent_rank(self, now: float) -> str | None:
        """A rank of which nothing was heard, although the agents of others have been there for ``host_timeout``."""
        absent = sorted(set(range(self.world_size)) - set(self.agents.connections))
        seconds = now - self.agents.last_joined
        if not absent or not self.agents.connections or seconds <= self.plan.host_timeout:
            return None
        self.culprit = absent[0]
        place = f"rank {self.culprit} on {self._host_of(self.culprit)}"
        return f"{place} has not started, or ended before it could report, and the others waited {seconds:.0f} s for it"

    def _host_of(self, rank: int) -> str:
        return self.hosts[rank // self.plan.ranks_per_node][0]

    def _silent_host(self, now: float) -> str | None:
        silent = first_silent(self.agents.connections, now, self.plan.host_timeout)
        if silent is None:
            return None
        self.culprit, seconds = silent
        self.host_lost = True
        return f"{self._host_of(self.culprit)} has not been heard of for {seconds:.0f} s"

    def _lost_agent(self, now: float) -> str | None:
        """An agent was lost and the job goes on: on a host that was cut off, nothing would end that rank any more."""
        rank = next((rank for rank, since in self.agents.lost.items() if now - since > _EXPLAINED), None)
        if rank is None:
            return None
        self.host_lost = True
        return f"{failure.describe_lost_agents(self._evidence(None), rank)}; no rank goes on without one"

    def _hung(self, now: float) -> str | None:
        """Why the attempt does not go on: a rank does not start, or nothing is written."""
        return self._absent_rank(now) or self._stall(now)

    def _stall(self, now: float) -> str | None:
        if now - self.progressed <= (self.plan.stall_timeout if self.made_step else self.plan.start_timeout):
            return None
        stopped = self.agents.stopped()  # before the order: SIGUSR1 ends a rank that has no handler for it yet
        self.agents.order(b"dump")
        end = time.monotonic() + 2
        while time.monotonic() < end:
            self._listen(_TICK)
        why = f"nothing was written to metrics.jsonl for {now - self.progressed:.0f} s"
        if not self.agents.connections and not self.output.ranks:
            cause = f"the check of the job still goes on, or {self.plan.program} reaches no host"
            return f"{why}, for no rank was started: {cause}"
        found = failure.hung_rank(
            stopped=stopped | self.agents.stopped(),
            absent=set(range(self.world_size)) - set(self.agents.connections),
            stacks=self.agents.stacks,
        )
        if found is None:
            return why
        self.culprit, how = found
        return f"{why}; rank {self.culprit} on {self._host_of(self.culprit)} {how}"

    def _await_reports(self) -> None:
        """Wait for what is still on its way: mpirun's report, and agents, of which some may have yet to connect."""
        began = time.monotonic()
        while (waited := time.monotonic() - began) < _ENDING:
            self._listen(0.1)
            if not self.output.at_end:
                continue
            evidence = self._evidence(self.process.poll())
            if len(self.agents.ended) == self.world_size:
                return
            if waited > 1 and (evidence.no_rank_started or failure.is_explained(evidence)):
                return

    def _evidence(self, code: int | None) -> Evidence:
        launcher_lines = list(self.output.launcher)
        return Evidence(
            hosts=[name for name, _ in self.hosts],
            addresses=[address for _, address in self.hosts],
            ranks_per_node=self.plan.ranks_per_node,
            exit_code=code,
            decision=self.decision,
            culprit=self.culprit,
            ended=self.agents.ended,
            left=self.agents.left,
            lost_agents=self.agents.lost,
            out_of_memory=self.agents.out_of_memory,
            ended_by_agent=self.agents.ended_by_agent,
            stood_still=self.stood_still,
            errors=self.agents.errors,
            killed=killed_ranks(launcher_lines),
            launcher=self.plan.program,
            stacks=self.agents.stacks,
            rank_lines={rank: list(lines) for rank, lines in self.output.ranks.items()},
            launcher_lines=launcher_lines,
        )

    def _let_mpirun_report(self) -> None:
        """Give mpirun the time to see that the agents have ended all ranks, and to report how each ended."""
        end = time.monotonic() + _REPORTING
        while self.agents.connections and time.monotonic() < end and not self.output.at_end:
            self._listen(_TICK)

    def end(self) -> list[str]:
        """End everything on every host, in bounded time.

        Returns:
            Names of the hosts that did not confirm it; they were cut off, and their agents end the ranks.
        """
        self.agents.order(b"end")
        self._let_mpirun_report()
        for measure in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + _ENDING
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, measure)
            while time.monotonic() < end and (
                self.process.poll() is None or self.agents.unconfirmed(heard_within=_REACHABLE)
            ):
                self._listen(_TICK)
        self.process.wait()
        sweep(str(self.run))
        unconfirmed = sorted({self._host_of(rank) for rank in self.agents.unconfirmed()})
        self.agents.close()
        self.selector.close()
        self.output.close()
        return unconfirmed
