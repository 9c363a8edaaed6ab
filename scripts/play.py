#!/usr/bin/env python3
"""Run a playbook from a program, such as a scheduler, CI or a test. Prints its events as JSON lines.

    scripts/play.py train.yml -i inventory/mine -e run_name=night | jq .
    >>> done = play("train.yml", "-i", "inventory/mine", on_event=print); done.rc

Arguments after the playbook are ansible-playbook's; paths are relative to the root of the repository. Events have the
names that ansible-runner gives them, and a few fields. The last is {"event": "end", "rc": ..., "status": ...}. The exit
code is that rc: 0 on success, ansible-playbook's own on failure, 254 when it was cancelled (by SIGINT or SIGTERM) or
took longer than the timeout, 255 when it was killed.
"""

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

try:
    import ansible_runner  # type: ignore[import-untyped]
except ImportError:
    sys.exit("error: ansible-runner is not installed here; type `make control-node`, then . .venv/bin/activate")

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY))
from plugins.callback.reason_first import reason  # noqa: E402

Event = dict[str, Any]

# Events that are reported. A task that is skipped, or starts on a host, is not.
_REPORTED = (
    "playbook_on_play_start", "playbook_on_task_start", "playbook_on_stats",
    "runner_on_ok", "runner_on_failed", "runner_on_unreachable", "runner_retry",
    "runner_item_on_ok", "runner_item_on_failed",
)  # fmt: skip
_STATS = ("ok", "changed", "failures", "dark", "rescued", "ignored")


@dataclass(frozen=True)
class PlaybookResult:
    """The result of a playbook."""

    rc: int
    """The exit code: 0 only on success."""
    status: str
    """successful, failed, canceled or timeout."""
    stdout: str
    """What ansible-playbook printed."""
    events: list[Event] = field(repr=False)

    def hosts(self, stat: str) -> dict[str, int]:
        """{host: tasks}, without zeros, for ok, changed, failures, dark (unreachable), rescued or ignored."""
        found: dict[str, int] = next((e[stat] for e in reversed(self.events) if e["event"] == "playbook_on_stats"), {})
        return found

    def failures(self) -> list[str]:
        """The messages of the tasks that failed and of the hosts that were unreachable."""
        return [
            e["msg"] for e in self.events
            if e["event"] in ("runner_on_failed", "runner_on_unreachable") and not e["ignored"]
        ]  # fmt: skip


def _summarize(event: Event) -> Event | None:
    """The few fields of an ansible-runner event that are reported; None when it is not reported."""
    name, data = event["event"], event.get("event_data", {})
    summary: Event = {"event": name, "time": event["created"]}
    if name in ("verbose", "error", "warning", "deprecated", "system_warning"):
        text = event["stdout"].strip()
        return summary | {"event": "output", "text": text} if text else None
    if name not in _REPORTED:
        return None
    summary |= {key: data[key] for key in ("play", "role", "task", "host") if data.get(key)}
    if name == "playbook_on_stats":
        summary |= {key: data.get(key, {}) for key in _STATS}
    if isinstance(result := data.get("res"), dict):
        summary["changed"] = bool(result.get("changed"))
        if name.endswith(("failed", "unreachable")) or "_ansible_verbose_always" in result:
            summary["msg"] = reason(result) if name.endswith(("failed", "unreachable")) else result.get("msg", "")
        if name.endswith(("failed", "unreachable")):
            summary["ignored"] = bool(data.get("ignore_errors") or data.get("ignore_unreachable"))
    return summary


class _Terminator:
    """Ends the playbook on a signal or after the timeout. As a context manager, it handles SIGTERM and SIGINT.

    ansible-runner would kill ansible-playbook at once, and its workers would go on with their tasks. On SIGTERM
    ansible-playbook ends them too; it is killed only when it does not end in time.
    """

    grace = 15

    def __init__(self, timeout: int) -> None:
        self.status = ""  # then canceled or timeout
        self._deadline = time.monotonic() + timeout if timeout else math.inf
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.status = "canceled"

    def __call__(self) -> bool:
        """ansible-runner calls it repeatedly; whether to kill ansible-playbook now."""
        now = time.monotonic()
        if not self.status and now > self._deadline:
            self.status = "timeout"
        if self.status and self.grace:
            for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
                for pid in child.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGTERM)
            self._deadline, self.grace = now + self.grace, 0
        return bool(self.status) and now > self._deadline


def _environment() -> dict[str, str]:
    """Variables of ansible-playbook. What the caller's environment has set stays, and runner's own is replaced."""
    defaults = {
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_CALLBACK_PLUGINS": str(REPOSITORY / "plugins/callback"),
        "ANSIBLE_STDOUT_CALLBACK": "reason_first",
        "ANSIBLE_HOST_KEY_CHECKING": "True",
    }
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{name: os.environ.get(name, value) for name, value in defaults.items()},
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
    }


def play(
    playbook: str,
    *args: str,
    on_event: Callable[[Event], object] = lambda _: None,
    environment: Mapping[str, str] | None = None,
    timeout: int = 0,
) -> PlaybookResult:
    """Run ``playbook`` with ``args`` of ansible-playbook, and call ``on_event`` with each event.

    Pass secrets in ``environment``, in this process's environment, or in a vault: arguments are visible in the list of
    processes. After ``timeout`` seconds the playbook is ended; 0 means no limit.
    """
    events: list[Event] = []

    def take(event: Event) -> bool:
        if summary := _summarize(event):
            events.append(summary)
            on_event(summary)
        return False  # ansible-runner keeps no copy on disk

    folder = Path(tempfile.mkdtemp(prefix="sdtune-play-"))  # 0700

    def started(status: Event, **_: object) -> None:
        if status["status"] == "running":  # the file holds the environment, which may hold a token
            (folder / "artifacts/it/command").unlink()

    try:
        with _Terminator(timeout) as terminator:
            done = ansible_runner.run(
                private_data_dir=str(folder),
                project_dir=str(REPOSITORY),
                ident="it",
                playbook=playbook,
                cmdline=shlex.join(args) or None,
                envvars={**_environment(), **(environment or {})},
                fact_cache_type="memory",  # runner would write the hosts' environments down
                settings={"pexpect_timeout": 1},  # how soon a signal is heeded
                cancel_callback=terminator,
                suppress_env_files=True,
                event_handler=take,
                status_handler=started,
                quiet=True,
            )
        with done.stdout as shown:
            stdout = shown.read()
    finally:
        shutil.rmtree(folder)
    rc, status = (254, terminator.status) if terminator.status else (done.rc, done.status)
    if rc is None:  # ansible-playbook was killed by somebody else
        rc = 255
    end = {"event": "end", "rc": rc, "status": status}
    events.append(end)
    on_event(end)
    return PlaybookResult(rc, status, stdout, events)


def main() -> int:
    """Print the events; the playbook goes on when nobody reads them any more."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2

    def report(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(event), flush=True)

    done = play(*sys.argv[1:], on_event=report)
    # a failed flush, to a reader that has closed its end, must not change the exit code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return done.rc


if __name__ == "__main__":
    sys.exit(main())
