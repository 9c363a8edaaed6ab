"""Stands behind a run on the primary: starts it, notices when it dies or hangs, ends it everywhere, starts it again.

It outlives the connection that started it, holds the run's lock, and says in ``state.json`` what it does. A guard
beside each rank (:mod:`sdtune.launch.agent`) is its eye and its hand on the other hosts.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdtune.host.ssh import command_on
from sdtune.launch import agent
from standalone import run_state

BAD_INPUT = 2
"""Exit code of a launch that cannot work, now or later."""
_TICK = 0.25
_ENDING = 10.0  # seconds that ranks and guards get to end before the next measure
_KEPT = 60  # lines of output that are kept of each rank
_KILLED = re.compile(r"RANK (\d+) PID \d+|KILLED BY SIGNAL: (\d+)")
# where a rank is that waits for others
_WAITS = re.compile(r"all_reduce|all_gather|barrier|broadcast|gather_object|wait_for_everyone|rendezvous|in reduce")
# what a rank says when another one left; never the first cause
_ECHO = re.compile(
    r"[Cc]onnection (closed|reset|refused|was)|Broken pipe|timed out|Timed out|gloo|DistNetworkError|TCPStore"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``supervisor.json`` of the run folder, which launch_config writes."""

    hosts: dict[str, str]
    """Name in the inventory and address of each host, the primary first."""
    ranks_per_node: int
    """Ranks on each."""
    gradient_accumulation_steps: int
    """Of the job: when fewer hosts go on, it may grow."""
    stall_timeout: float
    """Seconds without a line in metrics.jsonl after which the job counts as hung."""
    start_timeout: float
    """The same until the first step of an attempt: ranks have to start, join, load, and validate."""
    host_timeout: float
    """Seconds without a sign of life after which a host counts as lost."""
    host_wait: float
    """Seconds that a lost host gets to come back before a restart."""
    max_restarts: int
    """Restarts before the run counts as failed."""
    on_host_loss: str
    """``fail`` or ``continue``: what to do when a lost host does not come back."""


class StateFile:
    """``state.json``, written whole or not at all, also on a full disk: a reserve is given up for it."""

    def __init__(self, run: Path, **facts: Any) -> None:
        self.path, self.reserve, self.facts = run / run_state.STATE, run / ".reserve", facts
        self.reserve.write_bytes(b"\0" * 131_072)

    def write(self, **facts: Any) -> None:
        """Change some facts and write all."""
        self.facts |= facts
        text = json.dumps({**self.facts, "updated": time.time()}, indent=1) + "\n"
        temporary = self.path.with_name(f".{run_state.STATE}.tmp")
        for attempt in (1, 2):
            try:
                with temporary.open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path)
            except OSError:
                temporary.unlink(missing_ok=True)
                self.reserve.unlink(missing_ok=True)
                if attempt == 2:
                    raise
            else:
                return

    def close(self) -> None:
        """Free the reserve."""
        self.reserve.unlink(missing_ok=True)


@dataclass
class Peer:
    """The guard of a rank, as the supervisor sees it."""

    connection: socket.socket
    heard: float
    rank: int = -1
    state: str = ""
    gone: bool = False
    pending: bytes = b""


@dataclass
class Outcome:
    """How one attempt ended."""

    code: int
    why: str
    """In a few words, with rank and host where they are known."""
    lines: list[str] = field(default_factory=list)
    """What the first failing rank said last."""
    again: bool = True
    """Whether another attempt may end otherwise."""
    rank: int | None = None
    host: str | None = None
    deaf: list[str] = field(default_factory=list)
    """Hosts that were cut off, whose guards end their ranks by themselves."""


class Attempt:
    """One launch of the job, from mpirun's start to the last process's end on all hosts."""

    def __init__(self, run: Path, plan: Plan, hosts: dict[str, str], arguments: list[str], world_size: int) -> None:
        self.run, self.plan, self.hosts, self.world_size = run, plan, list(hosts.items()), world_size
        self.peers: dict[int, Peer] = {}
        self.strangers: list[Peer] = []
        self.left: list[int] = []  # ranks that ended, in the order in which it was heard
        self.speechless: set[int] = set()  # those of them whose guards ended without a word
        self.culprit: int | None = None
        self.output: dict[int | None, deque[str]] = {None: deque(maxlen=_KEPT)}
        self.pending, self.silent = b"", False  # of the output: the last line's beginning, and whether it ended
        self.token = secrets.token_hex(16)
        self.selector = selectors.DefaultSelector()
        # on one host lo, else where ranks meet
        self.server = socket.create_server(("127.0.0.1" if len(hosts) == 1 else self.hosts[0][1], 0))
        self.selector.register(self.server, selectors.EVENT_READ, self._accept)
        address, port = self.server.getsockname()[:2]
        environment = {
            **os.environ,
            agent.WHERE: f"{address}:{port},{plan.host_timeout},{self.token}",
        }
        if len(hosts) < len(plan.hosts):
            nodes = run / "nodefile.fewer"
            nodes.write_text("".join(f"{address}\n" for _, address in self.hosts), encoding="utf-8")
            environment |= {"SDTUNE_NODEFILE": nodes.name, "SDTUNE_WORLD_SIZE": str(world_size)}
        self.log = (run / "logs" / "launch.log").open("ab", buffering=0)
        # setpriv: should the supervisor be killed, mpirun goes, and with it the ranks of all hosts
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(run / "launch.sh"), *arguments],
            cwd=run,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.selector.register(self.process.stdout, selectors.EVENT_READ, self._read_output)
        self.progressed = time.monotonic()
        self.began = time.time()
        self.mark, self.made_step = self._mark(), False

    # --- what is heard ---------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        connection, _ = self.server.accept()
        connection.setblocking(False)
        peer = Peer(connection, time.monotonic())
        self.strangers.append(peer)
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._hear(peer))

    def _hear(self, peer: Peer) -> None:
        try:
            data = peer.connection.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        peer.heard, peer.pending = time.monotonic(), peer.pending + data
        *lines, peer.pending = peer.pending.split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
                if peer.rank < 0:
                    if not secrets.compare_digest(str(said["hello"]), self.token):
                        raise ValueError("a stranger")  # noqa: TRY301 - dropped just below
                    peer.rank = int(said["rank"])
                    self.peers[peer.rank] = peer
                    self.strangers.remove(peer)
                peer.state = said.get("beat", peer.state)
                if said.get("gone") and not peer.gone:
                    peer.gone = True
                    self.left.append(peer.rank)
                self._tell(peer, b"beat")
            except (ValueError, KeyError, TypeError):
                self._drop(peer)
                return

    def _drop(self, peer: Peer) -> None:
        self.selector.unregister(peer.connection)
        peer.connection.close()
        if peer.rank < 0:
            self.strangers.remove(peer)
        elif not peer.gone:
            peer.gone = True
            self.left.append(peer.rank)
            self.speechless.add(peer.rank)

    def _tell(self, peer: Peer, order: bytes) -> None:
        try:
            peer.connection.sendall(order + b"\n")
        except OSError:  # it is gone, or too far away to hear; its silence is judged elsewhere
            return

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 65_536)
        if not data:
            self.silent = True
            self.selector.unregister(self.process.stdout)
            return
        try:
            self.log.write(data)
        except OSError as error:  # a full disk; the lines are kept here
            self.output[None].append(f"logs/launch.log: {error.strerror}")
        *lines, self.pending = (self.pending + data).split(b"\n")
        for raw in lines:
            line = re.sub(r"\[\d+\] ?$", "", raw.decode(errors="replace"))  # mpirun's mark of a line that did not come
            found = re.match(r"\[(\d+)\] ?(.*)", line)
            rank = int(found.group(1)) if found else None
            self.output.setdefault(rank, deque(maxlen=_KEPT)).append(found.group(2) if found else line)

    def _mark(self) -> tuple[int, int]:
        try:
            status = (self.run / "metrics.jsonl").stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_ino, status.st_mtime_ns

    # --- what is done ----------------------------------------------------------------------------------------------

    def host_of(self, rank: int) -> str:
        """Name of the host that a rank runs on."""
        return self.hosts[rank // self.plan.ranks_per_node][0]

    def _listen(self, seconds: float) -> None:
        for key, _ in self.selector.select(seconds):
            key.data()

    def follow(self, interrupted: Callable[[], str | None]) -> Outcome:
        """Watch until the job ends, or has to be ended.

        Args:
            interrupted: says why the attempt has to be ended at once, or nothing.
        """
        why: str | None = None
        while why is None and self.process.poll() is None:
            now = time.monotonic()  # what lies unread is no silence
            self._listen(_TICK)
            if (mark := self._mark()) != self.mark:
                self.mark, self.progressed = mark, now
                self.made_step = self.made_step or "step" in run_state.progress(self.run, self.began)
            why = interrupted() or self._silent_host(now) or self._stall(now)
        outcome = self._judge(why)
        outcome.deaf = self.end()
        return outcome

    def _silent_host(self, now: float) -> str | None:
        for rank, peer in sorted(self.peers.items()):
            if not peer.gone and now - peer.heard > self.plan.host_timeout:
                self.culprit = rank
                return f"{self.host_of(rank)} has not been heard of for {now - peer.heard:.0f} s"
        return None

    def _stall(self, now: float) -> str | None:
        if now - self.progressed <= (self.plan.stall_timeout if self.made_step else self.plan.start_timeout):
            return None
        before = self._stopped()  # asked before the dump: it ends a rank that has no handler for it yet
        for peer in self.peers.values():  # where do they hang? faulthandler answers through mpirun
            if not peer.gone:
                self._tell(peer, b"dump")
        end = time.monotonic() + 2
        while time.monotonic() < end:
            self._listen(_TICK)
        what = f"nothing was written to metrics.jsonl for {now - self.progressed:.0f} s"
        stopped = sorted(before | self._stopped())
        absent = sorted(set(range(self.world_size)) - set(self.peers))
        stacks = {rank: _traceback(list(lines)) for rank, lines in self.output.items() if rank is not None}
        alone = sorted(
            r for r, text in stacks.items() if text and "Stack" in text[0] and not _WAITS.search("".join(text))
        )
        for ranks, how in (
            (stopped, "is stopped, as by SIGSTOP"),
            (absent, "never joined"),
            (alone, "is where the others wait for it"),
        ):
            if ranks:
                self.culprit = ranks[0]
                return f"{what}; rank {ranks[0]} on {self.host_of(ranks[0])} {how}"
        return what

    def _stopped(self) -> set[int]:
        """Ranks whose guards said last that they are stopped."""
        return {rank for rank, peer in self.peers.items() if peer.state in ("T", "t")}

    def _judge(self, why: str | None) -> Outcome:
        """Who failed first, and how."""
        code = self.process.poll()
        if why is None and code == 0:
            return Outcome(0, "finished")
        began = time.monotonic()
        while why is None and time.monotonic() < began + (1 if self.silent else _ENDING):
            self._listen(0.1)  # last words of mpirun and of ranks, and of guards that are still on their way
            if self.silent and sum(peer.gone for peer in self.peers.values()) == self.world_size:
                break
        told = list(self.output[None])
        said = {rank: list(lines) for rank, lines in self.output.items() if rank is not None}
        refusals = {rank: [x for x in lines if x.startswith("error: ")] for rank, lines in sorted(said.items())}
        refused = next((rank for rank, lines in refusals.items() if lines), None)
        rank = self.culprit
        if why is None and not said and code == BAD_INPUT:  # launch.sh itself refused
            why = next((x.removeprefix("error: ") for x in told if x.startswith("error: ")), "launch.sh refused")
            return Outcome(code, why, told[-30:], again=False)
        if why is None and refused is not None:
            rank, why = refused, f"rank {refused} on {self.host_of(refused)}: {refusals[refused][-1]}"
        elif why is None:
            rank = self._first_cause(said, told)
            why = self._how(rank, said, told)
            refused = None
        else:
            refused = None
        lines = _traceback(said.get(rank, [])) if rank is not None else []
        return Outcome(
            code if code is not None else -1,
            why,
            lines or told[-30:],
            again=refused is None,
            rank=rank,
            host=self.host_of(rank) if rank is not None else None,
        )

    def _first_cause(self, said: dict[int, list[str]], told: list[str]) -> int | None:
        """The rank that ended first, unless all that it says is that another one left."""
        raised = {rank: lines for rank, text in said.items() if (lines := _traceback(text)) and "Traceback" in lines[0]}
        causes = [rank for rank, lines in sorted(raised.items()) if not _ECHO.search(_exception(lines))]
        if self.left:
            first = self.left[0]
            return causes[0] if causes and first in raised and first not in causes else first
        killed = [rank for rank, number in _killed_ranks(told) if rank not in raised]
        return next(iter(causes + killed), None)

    def _how(self, rank: int | None, said: dict[int, list[str]], told: list[str]) -> str:
        if rank is None:
            return f"mpirun ended with code {self.process.poll()}"
        who = f"rank {rank} on {self.host_of(rank)}"
        lines = _traceback(said.get(rank, []))
        if lines and "Traceback" in lines[0]:
            return f"{who}: {_exception(lines)}"
        if rank in self.speechless:
            return f"all processes on {self.host_of(rank)} ended at once"
        number = dict(_killed_ranks(told)).get(rank)
        return f"{who} was killed by signal {number}" if number else f"{who} ended without a word"

    def end(self) -> list[str]:
        """End everything on every host, in bounded time.

        Returns:
            Names of the hosts whose guards did not confirm it: cut off, they end their ranks by themselves.
        """
        for peer in self.peers.values():
            self._tell(peer, b"end")
        for measure in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + _ENDING
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, measure)
            while time.monotonic() < end and (
                self.process.poll() is None or any(not peer.gone for peer in self.peers.values() if self._near(peer))
            ):
                self._listen(_TICK)
        self.process.wait()
        agent.sweep(str(self.run))
        deaf = sorted({self.host_of(rank) for rank, peer in self.peers.items() if not peer.gone})
        for peer in [*self.peers.values(), *self.strangers]:
            peer.connection.close()
        self.server.close()
        self.selector.close()
        self.log.close()
        return deaf

    def _near(self, peer: Peer) -> bool:
        return time.monotonic() - peer.heard < 5


def _killed_ranks(told: list[str]) -> list[tuple[int, int]]:
    """Ranks and signals of Hydra's report, in its order."""
    found, rank = [], None
    for line in told:
        for match in _KILLED.finditer(line):
            if match.group(1) is not None:
                rank = int(match.group(1))
            elif rank is not None:
                found.append((rank, int(match.group(2))))
                rank = None
    return found


def _traceback(lines: list[str]) -> list[str]:
    """From the last traceback on; without one the last lines."""
    starts = [
        i for i, line in enumerate(lines) if line.startswith(("Traceback (most", "Current thread", "Fatal Python"))
    ]
    return lines[starts[-1] :] if starts else lines[-15:]


def _exception(lines: list[str]) -> str:
    """The exception of a traceback: its first line that is not indented; on a full disk rank.sh's tee joins in."""
    return next((x for x in lines[1:] if x and not x.startswith((" ", "tee: "))), lines[-1])


class Supervisor:
    """All attempts of one run."""

    def __init__(self, run: Path, arguments: list[str]) -> None:
        self.run, self.arguments = run, arguments
        self.plan = Plan(**json.loads((run / "supervisor.json").read_text(encoding="utf-8")))
        self.began = time.time()
        self.ended_by: str | None = None
        self.state = StateFile(
            run,
            state="running",
            run_name=run.name,
            pid=os.getpid(),
            host=os.uname().nodename,
            started=self.began,
            attempt=1,
            attempt_started=self.began,
            max_restarts=self.plan.max_restarts,
            hosts=list(self.plan.hosts),
            ranks_per_node=self.plan.ranks_per_node,
            failures=[],
        )
        self.stop_request: dict[str, float] | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        self.ended_by = f"the supervisor was ended by {signal.Signals(number).name}"

    def _interrupted(self) -> str | None:
        if self.ended_by:
            return self.ended_by
        if self.stop_request is None:
            try:
                self.stop_request = json.loads((self.run / run_state.STOP).read_text(encoding="utf-8"))
            except (OSError, ValueError):  # there is none, or it is being written
                return None
            self.state.write(stopping=True)
        if time.time() > self.stop_request["asked"] + self.stop_request["within"]:
            return f"it was asked to stop and made no step for {self.stop_request['within']:.0f} s"
        return None

    def _asked_to_stop(self) -> bool:
        return self.stop_request is not None

    def _ended_on_request(self) -> bool:
        """Whether the ranks did stop as asked; they may be faster than this process is to see the request."""
        last = run_state.tail_of(self.run / "metrics.jsonl")[-1:]
        return any(x["kind"] == "stopped" and x["time"] >= self.state.facts["attempt_started"] for x in last)

    def supervise(self) -> int:
        """Run to the end.

        Returns:
            0 when the run finished, 3 when it was stopped on request, 1 when it failed, 2 when it cannot work.
        """
        for name in (run_state.STOP, run_state.COLLECTED, "logs/launch.log"):
            (self.run / name).unlink(missing_ok=True)
        (self.run / "logs").mkdir(exist_ok=True)
        self.state.write()
        hosts, arguments, number = dict(self.plan.hosts), self.arguments, 1
        while True:
            world_size = len(hosts) * self.plan.ranks_per_node
            outcome = self._attempt(hosts, arguments, world_size)
            finished = self._finished_since(self.began)
            if outcome.code == 0 or finished:
                note = {} if outcome.code == 0 else {"note": f"after the last file was written, {outcome.why}"}
                return self._close(0, "finished", exit_code=0, **note)
            clean = self._ended_on_request()
            if clean or self._asked_to_stop():
                reason = "on request" if clean else f"on request, but not cleanly: {outcome.why}"
                return self._close(3, "stopped", exit_code=outcome.code, reason=reason)
            failure = {
                "attempt": number,
                "time": time.time(),
                "why": outcome.why,
                "rank": outcome.rank,
                "host": outcome.host,
                "lines": outcome.lines,
                "exit_code": outcome.code,
                "unconfirmed": outcome.deaf,
                "step": run_state.progress(self.run, self.state.facts["attempt_started"]).get("step"),
                "checkpoint": run_state.newest_checkpoint(self.run) if self._begun() or not self._anew() else None,
            }
            self.state.write(failures=[*self.state.facts["failures"], failure], exit_code=outcome.code)
            if self.ended_by or not outcome.again or number > self.plan.max_restarts:
                return self._close(BAD_INPUT if outcome.code == BAD_INPUT else 1, "failed", reason=outcome.why)
            absent = self._wait_for_hosts(dict(self.plan.hosts))
            if self._asked_to_stop():
                return self._close(3, "stopped", reason="on request, while it waited for lost hosts")
            if ended := self._interrupted():
                return self._close(1, "failed", reason=ended)
            if absent and self.plan.on_host_loss != "continue":
                return self._close(1, "failed", reason=f"{outcome.why}; {', '.join(absent)} did not come back")
            hosts = {name: address for name, address in self.plan.hosts.items() if name not in absent}
            arguments = self._again(hosts)
            number += 1
            now = time.time()
            self.state.write(state="running", attempt=number, attempt_started=now, hosts=list(hosts))

    def _attempt(self, hosts: dict[str, str], arguments: list[str], world_size: int) -> Outcome:
        return Attempt(self.run, self.plan, hosts, arguments, world_size).follow(self._interrupted)

    def _finished_since(self, when: float) -> bool:
        try:
            return (self.run / "finished.json").stat().st_mtime >= when
        except FileNotFoundError:
            return False

    def _begun(self) -> bool:
        """Whether this run has written anything yet; until then, what lies in its folder may be of an earlier one."""
        try:
            return (self.run / "metrics.jsonl").stat().st_mtime >= self.began
        except FileNotFoundError:
            return False

    def _anew(self) -> bool:
        return "--overwrite" in self.arguments

    def _again(self, hosts: dict[str, str]) -> list[str]:
        """Arguments of the next attempt: go on from the newest checkpoint that this run has written."""
        arguments = ["--resume_from_checkpoint", "auto"] if self._begun() else list(self.arguments)
        if len(hosts) < len(self.plan.hosts):
            before, now = (len(some) * self.plan.ranks_per_node for some in (self.plan.hosts, hosts))
            arguments += ["--world_size", str(now), "--resume_reshard"]
            whole = before * self.plan.gradient_accumulation_steps
            if whole % now == 0:  # the same samples a step, in more micro-steps
                arguments += ["--gradient_accumulation_steps", str(whole // now)]
        return arguments

    def _wait_for_hosts(self, hosts: dict[str, str]) -> list[str]:
        """Wait until all hosts answer and nothing of the last attempt runs there; names of those that do not."""
        end = time.monotonic() + self.plan.host_wait
        absent = list(hosts)
        while True:
            absent = [name for name in absent if not self._reaches(hosts[name])]
            if not absent or time.monotonic() >= end or self._interrupted() or self._asked_to_stop():
                return absent
            self.state.write(state="waiting", waiting_for=absent)
            time.sleep(1)

    def _reaches(self, address: str) -> bool:
        if address == next(iter(self.plan.hosts.values())):
            return True
        sweep = [sys.executable, "-P", "-m", "sdtune.launch", "sweep", str(self.run)]
        try:
            done = subprocess.run(
                command_on(address, sweep),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _close(self, code: int, state: str, **facts: Any) -> int:
        (self.run / run_state.STOP).unlink(missing_ok=True)
        self.state.write(state=state, ended=time.time(), **facts)
        self.state.close()
        return code


def hold_lock(run: Path) -> int | None:
    """Take the supervisor's lock for as long as this process lives; None: another one has it."""
    descriptor = os.open(run / run_state.SUPERVISOR_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(20):  # whoever looks at the lock holds it for an instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return descriptor
    os.close(descriptor)
    return None
