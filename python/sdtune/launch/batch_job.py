"""The supervisor of a run that is a batch job of Slurm: what Slurm does not do.

Slurm chooses the hosts, starts the job again after it has lost one, and ends it at its time limit. Left to this one are
a checkpoint before that limit, why an attempt failed, and the request to be started again. Each start of the job is an
attempt of the run.
"""

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sdtune.errors import BadInput
from sdtune.launch.allocation import Allocation
from sdtune.launch.attempt import Attempt
from sdtune.launch.failure import Outcome
from sdtune.launch.launcher_output import reported_by_srun
from sdtune.launch.submit import newest_job
from sdtune.launch.supervisor import FAILED, FINISHED, STOPPED, Supervisor
from standalone import run_state

OUTSIDE = "from outside, as by scancel"
_KILLED = 120.0  # seconds for Slurm to end a job that it starts again
_MARGIN = 20.0  # of the seconds before the time limit, those that are left to end the job


class BatchJob(Supervisor):
    """One attempt of the run, by one start of the job."""

    def __init__(self, run: Path, arguments: list[str], allocation: Allocation) -> None:
        before = run_state.read_state(run)
        again = before.get("job") == allocation.job
        super().__init__(
            run, arguments, hosts=allocation.hosts, attempt=allocation.attempt, job=allocation.job, call=None
        )
        self.allocation = allocation
        self.limit_near = self.cancelled = False
        self.step_before = run_state.newest_checkpoint(run)
        if again:  # the job as a whole began then
            self.began = before["started"]
            self.state.facts |= {"started": self.began, "failures": before.get("failures", [])}
            if before.get("state") == "running":
                self._note_lost_attempt(before)
        signal.signal(signal.SIGUSR1, self._on_time_limit)

    def _on_time_limit(self, *_: object) -> None:
        self.limit_near = True

    def _on_signal(self, number: int, _: object) -> None:
        self.cancelled = True
        self.ended_by = f"the job was ended from outside ({signal.Signals(number).name}), as by scancel"

    def _note_lost_attempt(self, before: dict[str, object]) -> None:
        """The attempt before could not record its end: its first host was lost, or Slurm took the job away."""
        outcome = Outcome(code=-1, why="its first host was lost, or Slurm took the job away")
        number = self.allocation.attempt - 1
        self.state.facts["failures"] = [*self.state.facts["failures"], self._failure(outcome, number)]

    def _make_attempts(self) -> int:
        self._open()
        if (code := self._draw_class_pictures(self.allocation.hosts)) is not None:
            return code
        first = self.allocation.attempt == 1
        arguments = self.arguments if first else self._arguments_of_restart(self.allocation.hosts)
        attempt, outcome = self._attempt(self.allocation.hosts, arguments, self.allocation.attempt)
        if self._finished(attempt.token) or self.cancelled or not self.limit_near:
            return self._end(outcome, attempt)
        if self._newest_is(self.step_before):
            why = "its time limit came before its first checkpoint; raise slurm_time_limit, or lower "
            why += "training_checkpointing_steps"
            return self._close(FAILED, "failed", reason=why)
        return self._again("its time limit came near, and it goes on from its checkpoint")

    def _drawing_hosts(self, _: Mapping[str, str]) -> list[str]:
        return ["--allocation"]

    def _drawing_ends(self) -> bool:
        return self.limit_near or super()._drawing_ends()

    def _code_after_drawing(self, drawn: int) -> int:
        if self.cancelled:
            return self._close(STOPPED, "stopped", reason=OUTSIDE)
        if not self.limit_near or self.stop_request is not None:
            return super()._code_after_drawing(drawn)
        if not drawn:
            why = "its time limit came before it had drawn one class picture; raise slurm_time_limit"
            return self._close(FAILED, "failed", reason=why)
        return self._again(f"its time limit came near, and the next start draws the rest; {drawn} class pictures stay")

    def _end(self, outcome: Outcome, attempt: Attempt) -> int:
        """After an attempt that the time limit did not end."""
        if self.cancelled and not self._finished(attempt.token):
            return self._close(STOPPED, "stopped", exit_code=outcome.code, reason=OUTSIDE)
        lost = self._host_lost(outcome, attempt)
        code = self._code_after(outcome, self.allocation.attempt, attempt.token, restarts=sys.maxsize if lost else None)
        return code if code is not None else self._again(outcome.why)

    def _host_lost(self, outcome: Outcome, attempt: Attempt) -> bool:
        """Whether a host was lost: with its agents, or with Slurm's daemon, which would say how a rank has ended."""
        if attempt.host_lost or outcome.rank in attempt.agents.lost:
            return True
        silent = outcome.rank in attempt.agents.ended and outcome.rank not in attempt.agents.errors
        return silent and outcome.rank not in reported_by_srun(attempt.output.launcher)

    def _asked_for(self) -> float:
        """See :meth:`Supervisor._asked_for`: when it was submitted, since a job that starts may be asked to stop."""
        if newest_job(self.run) != self.allocation.job:  # submitted by hand
            return super()._asked_for()
        return (self.run / run_state.SUBMITTED).stat().st_mtime

    def _newest_is(self, step: int | None) -> bool:
        return run_state.newest_checkpoint(self.run) == step

    def _interrupted(self) -> str | None:
        """As for any run; a time limit that is near counts as a request to stop, unless there was one."""
        if self.limit_near and self.stop_request is None and not (self.run / run_state.STOP).exists():
            run_state.ask_to_stop(self.run, max(1.0, self.plan.signal_seconds - _MARGIN))
        return super()._interrupted()

    def _again(self, why: str) -> int:
        """Let Slurm start the job again; it ends this process meanwhile."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(FINISHED))
        (self.run / run_state.STOP).unlink(missing_ok=True)
        self.state.write(state="requeued", reason=why, ended=time.time())
        self.state.close()
        try:
            self.allocation.requeue()
        except BadInput as error:
            why = f"{why}; Slurm does not start it again ({error})"
            return self._close(FAILED, "failed", reason=why)
        time.sleep(_KILLED)
        return FINISHED
