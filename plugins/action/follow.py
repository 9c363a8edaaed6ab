"""Follow a run, or the generation of its pictures, until it ends, and show its progress as one live line.

The run does not depend on this: it goes on after Ctrl-C, and when the control node dies. The host is asked every few
seconds with standalone/run_state.py, which the host's own Python reads from standard input. Each call waits there for
the end of the run, so that the end is noticed at once.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import time
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

_TERMINAL_SECONDS = 1.0
_LINES_SECONDS = 5.0  # where a line cannot replace the one before, such as in a log
LOOKS_AT_HOPELESS = 2  # at a batch job that cannot start, before the call ends
_SLURM_SECONDS = 10.0  # Slurm is asked once so often: its controller serves all users
_QUIET_SECONDS = 60.0  # there, print a line at least this often

display = Display()


def span(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe(seen: dict) -> str:
    """The progress of a run, in one line."""
    state, progress = seen["state"], seen["progress"]
    name = state.get("run_name", "the run")
    if seen["standstill"]:
        return f"{name} stands still: {seen['standstill']}"
    if state.get("state") in ("pending", "starting"):
        return f"{name} {state['words']}"
    if state.get("state") == "waiting" and "used_by" in state:
        used = ", ".join(f"{host}, used by {others}" for host, others in state["used_by"].items())
        return f"{name}: waiting for {used}"
    if state.get("state") == "waiting":
        return f"{name}: waiting for {', '.join(state.get('waiting_for', []))} to come back"
    parts = []
    if "step" in progress:
        max_steps = progress.get("max_steps")
        parts.append(f"step {progress['step']}{f'/{max_steps}' if max_steps else ''}")
        parts.append(f"loss {progress['loss']:.4f}")
    else:
        parts.append(state.get("doing") or ("starting" if "validation" not in progress else "first steps"))
    if validation := progress.get("validation"):
        parts.append(f"validation {validation['loss']:.4f}")
    if "step" in progress:
        parts += [f"{progress['step_s']:.3g} s/step", f"{progress['images_per_s']:.3g} images/s"]
        if "eta_s" in progress:
            parts.append(f"ETA {span(progress['eta_s'])}")
    if state.get("attempt", 1) > 1:
        parts.append(f"attempt {state['attempt']}")
    if state.get("stopping"):
        parts.append("stopping")
    if seen.get("remark"):
        parts.append(seen["remark"])
    return f"{name}: {', '.join(parts)}"


def failure_line(failure: dict) -> str:
    """A failed attempt, in one line."""
    checkpoint = failure.get("checkpoint")
    kept = "no checkpoint" if checkpoint is None else f"newest checkpoint: step {checkpoint}"
    reached = f" at step {failure['step']}" if failure.get("step") else ""
    return f"attempt {failure['attempt']} ended{reached}: {failure['why']} ({kept})"


def going_on(checkpoint: int) -> str:
    """How a run goes on that was ended."""
    return f"go on from step {checkpoint} with -e training_resume_from_checkpoint=auto"


def on_terminal() -> bool:
    """Whether the standard output of ansible-playbook, this process's parent, is a terminal."""
    if os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:  # this process, a worker, has no standard output of its own
        output = os.stat(f"/proc/{os.getppid()}/fd/1")  # noqa: PTH116 - follows the link in /proc
    except OSError:
        return False
    return stat.S_ISCHR(output.st_mode) and os.major(output.st_rdev) in (4, 136)  # a console, a pseudo-terminal


def describe_drawing(state: dict) -> str:
    """The progress of the generation of pictures, in one line."""
    parts = [f"{state['pictures']}/{state['of']} pictures"]
    if state.get("hosts"):
        parts.append(", ".join(f"{host} {batches}" for host, batches in state["hosts"].items()) + " batches")
    if state.get("eta_s") and "ended" not in state:
        parts.append(f"ETA {span(state['eta_s'])}")
    return "; ".join(parts)


class ActionModule(ActionBase):
    """The action ``follow``."""

    TRANSFERS_FILES = False

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        """Follow the run; the result has its last state, and the task fails when the run does."""
        result = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "skipped": True}
        arguments = self._task.args
        self._script = Path(arguments["script"]).read_bytes()
        self._reconnect_timeout = float(arguments.get("reconnect_timeout", 120))
        self._live = on_terminal()
        verb = "drawing" if arguments["what"] == "drawing" else "look"
        self._command = f"{shlex.quote(arguments['python'])} - {verb} {shlex.quote(arguments['run_dir'])}"
        name = (task_vars or {}).get("inventory_hostname", "the primary")
        if verb == "drawing":
            return {**result, **self._follow_drawing(name)}
        seen = self._follow()
        state = seen["state"]
        result.update(changed=True, state=state, progress=seen["progress"])
        if state.get("state") not in ("finished", "stopped"):
            result.update(failed=True, msg=self._failure_message(name, arguments["run_dir"], seen))
        return result

    def _follow_drawing(self, name: str) -> dict:
        """The result of a generation: its last state, or why it failed."""
        last, reported, seen = "", set(), {}
        while True:
            seen = self._ask(self._interval(seen))
            state = seen["state"]
            for host, why in state.get("lost", {}).items():
                if host not in reported:
                    self._print(f"warning: {host} {why}; the others draw what it has not handed over")
                    reported.add(host)
            line = (
                describe_drawing(state) if state else f"the generation {words}" if (words := seen.get("words")) else ""
            )
            if line and line != last:
                last = line
                if self._live:
                    display.display(f"\r\x1b[K{line}", newline=False, screen_only=True)
                else:
                    display.display(line)
            if not seen["going"]:
                break
        if self._live:
            display.display("", screen_only=True)
        if "ended" not in state:
            why = seen["log"][-1].removeprefix("error: ") if seen["log"] else "it was killed, and its log is empty"
            return {"failed": True, "msg": f"{name}: the drawing ended before all pictures were there: {why}"}
        return {"changed": True, "state": state}

    def _follow(self) -> dict:
        printed, failures, last, hopeless = 0.0, 0, ("", 0), 0
        seen = self._ask(0)
        while True:
            news = seen["state"].get("failures", [])
            for failure in news[failures:]:
                self._print(f"{seen['state'].get('run_name')}: {failure_line(failure)}")
            going = seen["supervised"]
            line, progress = describe(seen), seen["progress"]
            tenth = 10 * progress.get("step", 0) // (progress.get("max_steps") or 10**9)
            mark = (
                str(progress.get("validation")),
                tenth,
                seen["state"].get("state"),
                len(news),
                seen["standstill"] != "",
                seen["state"].get("why"),
                seen.get("remark", ""),
            )
            if self._live and going:
                display.display(f"\r\x1b[K{line}", newline=False, screen_only=True)
            elif mark != last or time.monotonic() - printed > _QUIET_SECONDS:
                if "step" in progress or "doing" in seen["state"] or mark[2:] != last[2:]:
                    self._print(line)
                printed = time.monotonic()
            failures, last = len(news), mark
            # a reason that ends by itself has ended when Slurm has looked at the job again
            hopeless = hopeless + 1 if seen["state"].get("never") else 0
            if not going or hopeless > LOOKS_AT_HOPELESS:
                if self._live:
                    display.display("", screen_only=True)
                return seen
            seen = self._ask(self._interval(seen))

    def _interval(self, seen: dict) -> float:
        """Seconds until the next look; ``seen``: what the last one saw."""
        interval = _TERMINAL_SECONDS if self._live else _LINES_SECONDS
        return max(interval, _SLURM_SECONDS) if seen.keys() & {"remark", "words"} else interval

    def _print(self, line: str) -> None:
        display.display(f"{chr(13)}{chr(27)}[K{line}" if self._live else line)

    def _ask(self, wait: float) -> dict:
        """Ask for the state once; a host that does not answer is asked again until the timeout."""
        end, reported = time.monotonic() + self._reconnect_timeout, False
        while True:
            try:
                done = self._low_level_execute_command(f"{self._command} {wait}", in_data=self._script)
                lost = done["rc"] == 255
                why = (done["stderr"] or done["stdout"]).strip().split("\n")[-1]
            except AnsibleConnectionFailure as error:
                lost, done, why = True, {}, str(error.message).strip().rpartition("\n")[2]
            if not lost:
                if done["rc"]:
                    raise AnsibleError(f"the state of the run cannot be read: {why}")
                return json.loads(done["stdout"][done["stdout"].index("{") :])
            if time.monotonic() > end:
                raise AnsibleConnectionFailure(
                    f"the primary has not answered for {self._reconnect_timeout:.0f} s ({why}); the run is left alone: "
                    f"type the same again to follow it"
                )
            if not reported:
                self._print("the primary does not answer; trying again")
                reported = True
            time.sleep(2)

    def _failure_message(self, name: str, run_dir: str, seen: dict) -> str:
        if not seen["exists"]:
            return f"{name}: the run folder {run_dir} was deleted while the run was going on, which ends the run"
        state = seen["state"]
        if state.get("never"):
            return (
                f"{name}: job {state['job']} cannot start ({state['why']}): {state['never']}; it stays in the queue: "
                f"ansible-playbook stop.yml takes it out"
            )
        failures = state.get("failures", [])
        if seen["lost"] or state.get("state") not in ("failed",):
            how = "the supervisor of the run died, and the job with it"
            if seen.get("rebooted"):
                how = "the host was rebooted, which ended the run"
            checkpoint = seen["progress"].get("checkpoint")
            kept = "there is no checkpoint: start again" if checkpoint is None else going_on(checkpoint)
            return f"{name}: {how}; {kept}; logs are in {run_dir}/logs"
        many = len(failures) > 1
        text = [f"{name}: the run failed: {state.get('reason')}"]
        text += [failure_line(failure) for failure in failures] if many else []
        if failures:
            text += [f"all logs are in {run_dir}/logs; the details are", *failures[-1]["lines"]]
            if failures[-1].get("checkpoint") is not None and failures[-1]["exit_code"] != 2:
                by_itself = "and let it do so by itself with training_max_restarts"
                text.append(f"{going_on(failures[-1]['checkpoint'])}, {by_itself}")
        return "\n".join(text)
