"""Ansible's default output, but what went wrong is the first line of a failure, in its own words.

The default prints it twice, after "Task failed" and as a value of YAML, and of a command that failed it prints
"non-zero return code" first and the reason further down.
"""

from __future__ import annotations

DOCUMENTATION = """
name: reason_first
type: stdout
short_description: Ansible's default output, with the reason of a failure first
description: [Beyond the reason it prints what the default prints, where there is more.]
extends_documentation_fragment: [default_callback, result_format_callback]
"""

import re
from collections.abc import Mapping
from typing import Any

from ansible import constants  # type: ignore[import-untyped]
from ansible.executor.task_result import CallbackTaskResult  # type: ignore[import-untyped]
from ansible.plugins.callback.default import CallbackModule as Default  # type: ignore[import-untyped]

# What Ansible says of a program that failed; the program says more.
_GENERIC = re.compile(r"non-zero return code|failed to validate|MODULE FAILURE|Module result deserialization failed|$")
_ERROR = re.compile(r"\[?(error|fatal)\]?\b", re.IGNORECASE)
# What the host's loader says of a missing library that /etc/environment preloads, before it goes on.
_HARMLESS = re.compile(r"ERROR: ld\.so: .* ignored\.$")
_SAID = ("stderr", "module_stderr", "stdout", "module_stdout")
_KNOWN = {"msg", "changed", "unreachable", "failed"}  # of a result, what its reason tells already


def reason(result: Mapping[str, Any]) -> str:
    """Why a task failed, of its result: its message, or what its program said.

    Of a program's output that is the first line that begins with ``error``, else the last line.
    """
    message = str(result.get("msg") or "").strip().removeprefix("Task failed: ")
    if not _GENERIC.match(message):
        return message
    for name in _SAID:
        lines = [line.strip() for line in str(result.get(name) or "").splitlines() if line.strip()]
        lines = [line for line in lines if not _HARMLESS.search(line)]
        if lines:
            return next((line for line in lines if _ERROR.match(line)), lines[-1])
    return message or "no reason given"


class CallbackModule(Default):  # type: ignore[misc]
    """The callback ``reason_first``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "reason_first"

    def _failure(self, result: CallbackTaskResult, state: str, item: str = "") -> None:
        """Print why, and what else is known."""
        if self._last_task_banner != result.task._uuid:
            self._print_task_banner(result.task)
        self._handle_warnings(result.result)
        told = dict(result.result)
        if not self._display.verbosity:
            told.pop("exception", None)
        self._clean_results(told, result.task.action)
        why = reason(told)
        stderr = self.get_option("display_failed_stderr")
        self._display.display(
            f"{state}: [{self.host_label(result)}]{item}: {why}", constants.COLOR_ERROR, stderr=stderr
        )
        more = {key: value for key, value in told.items() if key not in _KNOWN and not key.startswith("_")}
        if more:
            self._display.display(self._dump_results(more).strip("\n"), constants.COLOR_ERROR, stderr=stderr)

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Of a loop, the items have said it already."""
        if not (result.task.loop and "results" in result.result):
            self._failure(result, "fatal")
        if ignore_errors:
            self._display.display("...ignoring", color=constants.COLOR_SKIP)

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """A host that does not answer."""
        self._failure(result, "unreachable")

    def v2_runner_item_on_failed(self, result: CallbackTaskResult) -> None:
        """One item of a loop."""
        self._failure(result, "failed", f" (item={self._get_item_label(result.result)})")
