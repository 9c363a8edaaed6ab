"""Check the jobs of all runs of a call on this host, before anything of them is in place.

Standard input is a JSON list. Importing torch takes seconds, once for all of them::

    [{"about": "run mug", "job": PATH, "ranks": 2, "overwrite": false}]

``about`` is what messages begin with, or nothing; ``ranks`` are those of the job on this host. Prints the warnings as a
JSON list, in the last line. Exit codes: 0 when all jobs can run, 2 when any cannot; its error names all of these.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdtune import cli
from sdtune.errors import BadInput
from sdtune.files import follow_mode
from sdtune.settings import Job, read_yaml


def _read(asked: Any) -> Job:
    job = read_yaml(asked["job"], Job)
    return dataclasses.replace(job, overwrite=asked["overwrite"] or job.overwrite)


def _check(job: Job, asked: Any) -> list[str]:
    from sdtune.training.checks import check_inputs  # after the files were read: importing torch takes seconds

    follow_mode(Path(job.run_dir))
    return check_inputs(job, asked["ranks"])


def check_jobs(request: Sequence[Any]) -> list[str]:
    """Check each job and its inputs.

    Args:
        request: as the module says.

    Returns:
        Warnings for the user.

    Raises:
        BadInput: of every job that cannot run, the first problem, a line each.
    """
    problems, warnings = [], []
    jobs: list[tuple[Any, Job]] = []

    def said(asked: Any, text: object) -> str:
        return f"{asked['about']}: {text}" if asked["about"] else str(text)

    for asked in request:
        try:
            jobs.append((asked, _read(asked)))
        except BadInput as error:
            problems.append(said(asked, error))
    cli.hide_unused([job for _, job in jobs])
    for asked, job in jobs:
        try:
            warnings += [said(asked, warning) for warning in _check(job, asked)]
        except BadInput as error:
            problems.append(said(asked, error))
        except Exception as error:
            error.add_note(said(asked, f"while {asked['job']} was checked"))
            raise
    if problems:
        raise BadInput("\n".join(problems))
    return warnings


def main() -> None:
    """Check what standard input names."""
    print(json.dumps(check_jobs(json.load(sys.stdin))))


if __name__ == "__main__":
    cli.hide_never_used()
    cli.run(main)
