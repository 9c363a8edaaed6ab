"""The supervisor of a run, on the primary: starts the run, notices when it dies or hangs, ends and restarts it.

It outlives the connection that started it, holds the lock of the run, and records its state in ``state.json``. One
attempt is :mod:`sdtune.launch.attempt`; :mod:`sdtune.launch.failure` decides why it failed, and
:mod:`sdtune.launch.lost_hosts` which hosts are lost.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput, DrawingFailed
from sdtune.launch import class_pictures
from sdtune.launch.attempt import Attempt
from sdtune.launch.failure import BAD_INPUT, Outcome
from sdtune.launch.lost_hosts import Hosts, wait_for_hosts
from sdtune.launch.meeting import digest_of
from sdtune.launch.shared_hosts import used_by_others
from sdtune.launch.state import Heartbeat, Plan, StateFile
from standalone import run_state

FINISHED, FAILED, STOPPED = 0, 1, 3
"""Exit codes of a supervisor, beside :data:`sdtune.launch.failure.BAD_INPUT`."""
_PORTS = 3  # that an attempt tries when programs take them


class Supervisor:
    """All attempts of one run."""

    def __init__(
        self,
        run: Path,
        arguments: list[str],
        call: str | None = None,
        *,
        hosts: Mapping[str, str] | None = None,
        attempt: int = 1,
        **facts: Any,
    ) -> None:
        """Prepare a supervisor; nothing has started when this returns.

        Args:
            run: the run folder.
            arguments: of launch.sh.
            call: name of the call that started it.
            hosts: name and address of each host, the primary first; those of the plan by default.
            attempt: number of the first attempt.
            facts: what else state.json says.
        """
        self.run, self.arguments, self.plan = run, arguments, Plan.read(run)
        self.began = time.time()
        self.heartbeat = Heartbeat(run)
        self.ended_by: str | None = None
        self.stop_request: dict[str, float] | None = None
        self.state = StateFile(
            run,
            state="running",
            run_name=run.name,
            call=call,
            pid=os.getpid(),
            host=os.uname().nodename,
            boot=run_state.boot(),
            started=self.began,
            attempt=attempt,
            attempt_started=self.began,
            max_restarts=self.plan.max_restarts,
            heartbeat=True,
            hosts=list(self.plan.hosts if hosts is None else hosts),
            ranks_per_node=self.plan.ranks_per_node,
            failures=[],
            **facts,
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        self.ended_by = f"the supervisor was ended by {signal.Signals(number).name}"

    def supervise(self) -> int:
        """Run until the run has ended for good.

        Whatever is raised here ends the job together with this process, and state.json says so.

        Returns:
            0 when the run finished, 3 when it was stopped on request, 1 when it failed, 2 when it cannot work.
        """
        try:
            return self._make_attempts()
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            self._close(FAILED, "failed", reason=f"the supervisor itself failed ({why}); see logs/supervisor.log")
            raise

    def _open(self) -> None:
        """Remove what an earlier start has left, and write the first state."""
        for name in (run_state.COLLECTED, "logs/launch.log"):
            (self.run / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if (self.run / run_state.STOP).stat().st_mtime < self._asked_for():
                (self.run / run_state.STOP).unlink()
        (self.run / "logs").mkdir(exist_ok=True)
        self.state.write()

    def _asked_for(self) -> float:
        """When this start was asked for; an older request to stop was meant for another."""
        return self.began

    def _make_attempts(self) -> int:
        self._open()
        hosts, arguments, number = dict(self.plan.hosts), self.arguments, 1
        if (code := self._draw_class_pictures(hosts)) is not None:
            return code
        used: dict[str, str] = {}
        while True:
            # a run that is restarted has had its hosts, so it waits for a run that took one of them meanwhile
            waits = self.plan.wait_for_hosts or number > 1
            if waits and (code := self._queue(hosts, used)) is not None:
                return code
            attempt, outcome = self._attempt(hosts, arguments, number)
            used = outcome.used_by if waits else {}
            if used and not self._interrupted():  # two started at one moment
                continue
            code = self._code_after(outcome, number, attempt.token)
            if code is not None:
                return code
            began = self.state.facts["attempt_started"]
            found = wait_for_hosts(self.run, self.plan, self._goes_on_waiting, began)
            self._note_reboot(outcome, found.rebooted)
            code = self._code_while_waiting(outcome, found)
            if code is not None:
                return code
            hosts = {name: address for name, address in self.plan.hosts.items() if name not in found.lost}
            arguments = self._arguments_of_restart(hosts)
            number += 1
            self.state.write(state="running", attempt=number, attempt_started=time.time(), hosts=list(hosts))

    def _attempt(self, hosts: Mapping[str, str], arguments: list[str], number: int) -> tuple[Attempt, Outcome]:
        """Make an attempt, again when a program takes the port between the look at it and rank 0, which is rare."""
        for _ in range(_PORTS):
            attempt = Attempt(self.run, self.plan, dict(hosts), arguments, number)
            outcome = attempt.follow(self._interrupted)
            if not outcome.port_taken or self._interrupted() or self.stop_request is not None:
                break
            print(f"attempt {number} starts again: {outcome.why}", flush=True)
        return attempt, outcome

    # --- before the first attempt ----------------------------------------------------------------------------------

    def _draw_class_pictures(self, hosts: Mapping[str, str]) -> int | None:
        """Draw those that are missing. The exit code when the run ends meanwhile; None when it may start."""
        if not self.plan.class_pictures:
            return None
        try:
            batches, folder = class_pictures.missing(self.run)
            before = self._pictures_in(folder)
            reach = self._drawing_hosts(hosts)
            if not batches or class_pictures.draw(self.run, folder, reach, self._drawing_ends, self._report_doing):
                self.state.facts.pop("doing", None)
                self.state.write(attempt_started=time.time())
                return None
        except (BadInput, DrawingFailed) as error:
            code = BAD_INPUT if isinstance(error, BadInput) else FAILED
            return self._close(code, "failed", reason=str(error))
        return self._code_after_drawing(self._pictures_in(folder) - before)

    def _pictures_in(self, folder: Path) -> int:
        return sum(1 for _ in (folder / "drawn").glob("*.png"))

    def _drawing_hosts(self, hosts: Mapping[str, str]) -> list[str]:
        """Arguments that name the hosts which draw beside this one."""
        return [word for host in list(hosts.items())[1:] for word in ("--host", *host)]

    def _report_doing(self, words: str) -> None:
        self.state.write(doing=words)

    def _drawing_ends(self) -> bool:
        return bool(self._interrupted()) or self.stop_request is not None

    def _code_after_drawing(self, drawn: int) -> int:
        """The exit code of a run whose drawing was ended.

        Args:
            drawn: pictures that it has drawn.
        """
        return self._close_before_attempt(f"while it drew class pictures, of which {drawn} are new and stay")

    def _close_before_attempt(self, what: str) -> int:
        if self.ended_by:
            return self._close(FAILED, "failed", reason=self.ended_by)
        return self._close(STOPPED, "stopped", reason=f"on request, {what}")

    def _queue(self, hosts: dict[str, str], used: dict[str, str]) -> int | None:
        """Wait while other runs use the hosts.

        Args:
            hosts: those that this run needs.
            used: what a rank has found there a moment ago, see :attr:`Outcome.used_by`.

        Returns:
            The exit code when the run ends meanwhile; None when it may start.
        """
        used = used or used_by_others(self.run, self.plan, hosts)
        while used:
            if self._interrupted() or self.stop_request is not None:
                return self._close_before_attempt("while other runs used its hosts")
            self.state.write(state="waiting", waiting_for=list(used), used_by=used)
            time.sleep(random.uniform(1, 4))  # two that wait do not start at the same moment
            used = used_by_others(self.run, self.plan, hosts)
        self.state.write(state="running", attempt_started=time.time())
        return None

    # --- after an attempt ------------------------------------------------------------------------------------------

    def _code_after(self, outcome: Outcome, number: int, token: str, restarts: int | None = None) -> int | None:
        """Record how an attempt ended; the exit code, or None when another attempt follows.

        Args:
            outcome: how it ended.
            number: which it was.
            token: its secret.
            restarts: how many there may be; those of the plan by default.
        """
        proven = self._finished(token)
        if outcome.code == 0 and not proven:
            outcome.code = FAILED
            outcome.why = f"{self.plan.program} ended well, but the ranks of this attempt finished nothing"
        if proven:
            note = {} if outcome.code == 0 else {"note": f"after the last file was written, {outcome.why}"}
            return self._close(FINISHED, "finished", exit_code=0, **note)
        clean = self._ranks_stopped()
        if clean or self.stop_request is not None:
            reason = "on request" if clean else f"on request, but not cleanly: {outcome.why}"
            return self._close(STOPPED, "stopped", exit_code=outcome.code, reason=reason)
        failures = [*self.state.facts["failures"], self._failure(outcome, number)]
        self.state.write(failures=failures, exit_code=outcome.code)
        most = self.plan.max_restarts if restarts is None else restarts
        if self.ended_by or not outcome.retry or number > most:
            return self._close(BAD_INPUT if outcome.code == BAD_INPUT else FAILED, "failed", reason=outcome.why)
        return None

    def _note_reboot(self, outcome: Outcome, hosts: list[str]) -> None:
        """Add to a failure which hosts were rebooted meanwhile, as they tell when they are back."""
        if hosts:
            outcome.why += f"; {', '.join(hosts)} {'was' if len(hosts) == 1 else 'were'} rebooted"
            self.state.facts["failures"][-1]["why"] = outcome.why

    def _code_while_waiting(self, outcome: Outcome, found: Hosts) -> int | None:
        """The exit code when the run ends after it waited for hosts; None when it goes on."""
        if self.stop_request is not None:
            return self._close(STOPPED, "stopped", reason="on request, while it waited for lost hosts")
        if ended := self._interrupted():
            return self._close(FAILED, "failed", reason=ended)
        wrong = [f"{name} {found.fault(name)}" for name in found.unswept]
        if found.lost and self.plan.on_host_loss != "continue":
            wrong.append(f"{', '.join(found.lost)} did not come back")
        if wrong:
            return self._close(FAILED, "failed", reason="; ".join([outcome.why, *wrong]))
        return None

    def _failure(self, outcome: Outcome, number: int) -> dict[str, Any]:
        """A failed attempt as state.json has it."""
        kept = self._has_progress() or "--overwrite" not in self.arguments
        return {
            "attempt": number,
            "time": time.time(),
            "why": outcome.why,
            "rank": outcome.rank,
            "host": outcome.host,
            "lines": outcome.lines,
            "exit_code": outcome.code,
            "unconfirmed": outcome.unconfirmed,
            "step": run_state.progress(self.run, self.state.facts["attempt_started"]).get("step"),
            "checkpoint": run_state.newest_checkpoint(self.run) if kept else None,
        }

    def _close(self, code: int, state: str, **facts: Any) -> int:
        (self.run / run_state.STOP).unlink(missing_ok=True)
        self.state.write(state=state, ended=time.time(), **facts)
        self.state.close()
        return code

    # --- what the run folder says ----------------------------------------------------------------------------------

    def _interrupted(self) -> str | None:
        """Why the attempt has to be ended at once, if it has."""
        if not self.heartbeat.beat():
            self.ended_by = f"the run folder {self.run} was deleted while the run was going on"
            print(f"error: {self.ended_by}", file=sys.stderr, flush=True)
        if self.ended_by:
            return self.ended_by
        if self.stop_request is None:
            try:
                self.stop_request = json.loads((self.run / run_state.STOP).read_text(encoding="utf-8"))
            except (OSError, ValueError):  # there is no request, or it is being written
                return None
            self.state.write(stopping=True)
        if time.time() > self.stop_request["asked"] + self.stop_request["within"]:
            return f"it was asked to stop and did not within {self.stop_request['within']:.0f} s"
        return None

    def _ranks_stopped(self) -> bool:
        """Whether the ranks stopped as requested, which they may do before this process has seen the request."""
        last = run_state.last_metrics(self.run)[-1:]
        return any(x["kind"] == "stopped" and x["time"] >= self.state.facts["attempt_started"] for x in last)

    def _finished(self, token: str) -> bool:
        """Whether the ranks that know this token have finished the run, all of them."""
        try:
            return bool(run_state.read_proof(self.run)["token_sha256"] == digest_of(token))
        except run_state.Unproven:
            return False

    def _has_progress(self) -> bool:
        """Whether this run has written metrics; until then, what is in its folder may be of an earlier run."""
        return self._written_since_start("metrics.jsonl")

    def _written_since_start(self, name: str) -> bool:
        try:
            return (self.run / name).stat().st_mtime >= self.began
        except FileNotFoundError:
            return False

    # --- restarts --------------------------------------------------------------------------------------------------

    def _arguments_of_restart(self, hosts: dict[str, str]) -> list[str]:
        """Arguments of launch.sh for the next attempt: resume from the newest checkpoint that this run has written."""
        arguments = ["--resume_from_checkpoint", "auto"] if self._has_progress() else list(self.arguments)
        if len(hosts) < len(self.plan.hosts):
            before, now = (len(some) * self.plan.ranks_per_node for some in (self.plan.hosts, hosts))
            arguments += ["--world_size", str(now), "--resume_reshard"]
            micro_batches = before * self.plan.gradient_accumulation_steps
            if micro_batches % now == 0:  # as many samples for each optimizer step, from fewer ranks
                arguments += ["--gradient_accumulation_steps", str(micro_batches // now)]
        return arguments

    def _goes_on_waiting(self, absent: list[str]) -> bool:
        if self._interrupted() or self.stop_request is not None:
            return False
        self.state.write(state="waiting", waiting_for=absent)
        return True
