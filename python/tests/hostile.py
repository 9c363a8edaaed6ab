"""Type what users type wrongly, and print a table of what is said: each is refused, warned of, or used.

``make hostile`` runs it. With ``--before CHECKOUT`` a column shows what an older version says of the same inputs.

Job files go to the entry points themselves, each in a process that is forked from one that has imported torch; so 200
of them take a minute. What the playbooks refuse is asked of ansible-playbook. It fails if an answer is a traceback, or
nothing where something has to be said.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:  # a server imports sdtune of its own checkout only
    from tests.hostile_inputs import Input

REPOSITORY = Path(__file__).parents[2]
_LOADED = (
    "torch", "diffusers", "transformers", "sdtune.training.trainer", "sdtune.inference.plan", "sdtune.methods.formats",
    "sdtune.trainer", "sdtune.checks", "sdtune.generation", "sdtune.pipelines",
)  # fmt: skip
_SAID = re.compile(r"^(error|warning): (.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a program said of an input."""

    kind: str
    """``refused``, ``warned``, ``used``, ``failed`` or ``TRACEBACK``."""
    text: str
    """Its lines, shortened."""


def answer_of(code: int, output: str) -> Answer:
    """Read the answer from an exit code and the output."""
    said = [match[2] for match in _SAID.finditer(output)]
    if "Traceback (most recent call last)" in output or code < 0:
        return Answer(kind="TRACEBACK", text=output.strip().splitlines()[-1] if output.strip() else f"signal {-code}")
    if code == 0:
        with contextlib.suppress(ValueError, IndexError, TypeError, KeyError):
            said += json.loads(output.strip().splitlines()[-1])["warnings"]
        return Answer(kind="warned" if said else "used", text=" / ".join(said))
    return Answer(kind={2: "refused"}.get(code, "failed"), text=" / ".join(said) or output.strip()[-200:])


def forked(program: Path, arguments: list[str]) -> Answer:
    """Run an entry point in a fork of this process, as if it was typed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        for number in (1, 2):
            os.dup2(write, number)
        sys.argv = [str(program), *arguments]
        code = 1
        try:
            runpy.run_path(str(program), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 - what a user would see
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
        output = pipe.read()
    return answer_of(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output)


def serve(checkout: Path) -> None:
    """Answer the jobs of standard input with a checkout's entry points: a line of JSON each."""
    sys.path.insert(0, str(checkout / "python"))
    os.chdir(tempfile.mkdtemp())
    for name in ("scipy", "sklearn"):  # as textual_inversion.py does
        sys.modules[name] = None  # type: ignore[assignment]
    with contextlib.redirect_stdout(io.StringIO()):
        for name in _LOADED:  # once, for all forks; other versions have other modules
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    for line in sys.stdin:
        program, arguments = json.loads(line)
        answer = forked(checkout / "python" / program, arguments)
        print(json.dumps([answer.kind, answer.text]), flush=True)


class Server:
    """A process that answers for one checkout."""

    def __init__(self, checkout: Path) -> None:
        command = [sys.executable, str(Path(__file__)), "--serve", str(checkout)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "python"), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, program: str, *arguments: str) -> Answer:
        """Type a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([program, arguments]), file=self._process.stdin, flush=True)
        kind, text = json.loads(self._process.stdout.readline())
        return Answer(kind=kind, text=text)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def play(variables: dict[str, Any], playbook: str, work: Path) -> str:
    """What ansible-playbook says of variables, on this machine, without installing anything."""
    done = subprocess.run(
        [
            str(REPOSITORY / ".venv/bin/ansible-playbook"), "-i", "inventory/local", *playbook.split(),
            "--extra-vars", json.dumps({"work_dir": str(work / "w"), "artifacts_dir": str(work / "a"), **variables}),
        ],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "default"},
    )  # fmt: skip
    return done.stdout + done.stderr


def judge_playbooks(work: Path, only: str) -> "Iterator[tuple[Input, Answer]]":
    """All inputs of one playbook in one call: everything that is wrong is said at once."""
    from tests.hostile_inputs import playbook_inputs

    inputs = [one for one in playbook_inputs(work) if only in one.group]
    for playbook, group in dict.fromkeys((i.program, i.group) for i in inputs):
        together = [i for i in inputs if (i.program, i.group) == (playbook, group)]
        variables: dict[str, Any] = {}
        for one in together:
            variables |= one.values
        output = " ".join(play(variables, playbook, work).replace("\\n", " ").split())
        for one in together:
            found = re.search(rf"[^;]*{re.escape(one.said)}[^;]*;[^;]{{0,120}}", output)
            traced = "Traceback" in output
            kind = "TRACEBACK" if traced else "refused" if found else "used"
            yield one, Answer(kind=kind, text=found[0][-200:].strip() if found else "")


def rows(work: Path, before: Path | None, only: str) -> "Iterator[tuple[Input, Answer, Answer | None]]":
    """Every input with its answer, and with that of the older version where it was asked."""
    from tests.hostile_inputs import generation_inputs, job_inputs

    servers = [Server(REPOSITORY), *([Server(before)] if before else [])]
    for make, program, flags in (
        (job_inputs, "textual_inversion.py", ["--check"]),
        (generation_inputs, "generate_images.py", ["--check"]),
    ):  # fmt: skip
        for one in make(work, servers[0].ask):
            if only not in one.group:
                continue
            file = work / "input.yaml"
            file.write_bytes(one.raw if one.raw is not None else yaml.safe_dump(one.values).encode())
            arguments = ["--job", str(file), *([] if one.train else flags)]
            answers = [server.ask(program, *arguments) for server in servers]
            yield one, answers[0], answers[1] if before else None
    for one, answer in judge_playbooks(work, only):
        yield one, answer, None
    for server in servers:
        server.close()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    """Print the table; 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an older version, for another column")
    parser.add_argument("--only", default="", metavar="TEXT", help="the groups whose names contain it")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    wrong = count = 0
    print("| group | input | " + ("before | " if options.before else "") + "said |")
    print("|---|---|" + ("---|" if options.before else "") + "---|")
    with tempfile.TemporaryDirectory(prefix="sdtune-hostile-") as folder:
        for one, answer, earlier in rows(Path(folder), options.before, options.only):
            count += 1
            right = answer.kind == one.expected
            wrong += not right
            old = f"{earlier.kind}: {_cell(earlier.text)[:160]} | " if earlier else "| " if options.before else ""
            mark = "" if right else f"**WRONG, expected {one.expected}** "
            said = f"{answer.kind}: {_cell(answer.text)}".replace(f"{folder}/", "")
            print(f"| {one.group} | {_cell(one.name)} | {old.replace(f'{folder}/', '')}{mark}{said} |", flush=True)
    print(f"\n{count} inputs, {wrong} with another answer than expected", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
