"""Flags of the training programs, one for each method: those of diffusers' scripts and our own, with a help text."""

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdtune.arguments import Parser
from sdtune.errors import BadInput
from sdtune.settings.diffusers_flags import OTHER_FLAGS, add_other_flags, other_flag_warnings
from sdtune.settings.fields import MISSING, Setting, sections_of, settings_of
from sdtune.settings.job import Job
from sdtune.settings.load import build, read_yaml

# arguments of a start rather than of the run: allowed together with --job
_AT_START = ("overwrite", "resume_from_checkpoint", "resume_reshard", "world_size", "gradient_accumulation_steps")
# sections that only a job file sets
_WITHOUT_FLAGS = ("openvino",)


def job_flags(method: str) -> dict[str, Setting]:
    """{flag: setting} of a training job with a method; its program determines the method."""
    return {
        setting.flag(method): setting
        for section in sections_of(Job)
        if section.section not in _WITHOUT_FLAGS
        for setting in settings_of(section)
        if not setting.nested and setting.is_for(method) and setting.key != "method"
    }


def _help(setting: Setting) -> str:
    """Meaning and default; argparse needs percent signs doubled."""
    if setting.default is MISSING:
        default = "the last part of --output_dir" if setting.name == "run_name" else "none; required without --job"
    elif isinstance(setting.default, bool):
        default = "yes" if setting.default else "no"
    else:
        default = "unset" if setting.default is None else str(setting.default)
    return f"{setting.described()} Default: {default}.".replace("%", "%%").replace("``", "")


def add_job_flags(parser: argparse.ArgumentParser, method: str) -> None:
    """Give ``parser`` a flag for each setting of a training job with ``method``, with its meaning and default."""
    for section in sections_of(Job):
        if not any(setting.section == section.section for setting in job_flags(method).values()):
            continue
        group = parser.add_argument_group((section.__doc__ or "").rstrip("."))
        for flag, setting in job_flags(method).items():
            if setting.section != section.section:
                continue
            names = [f"--{flag}"] + ([f"--{setting.former}"] if setting.former else [])
            if setting.kind is bool:
                group.add_argument(*names, action=argparse.BooleanOptionalAction, help=_help(setting))
                continue
            group.add_argument(
                *names,
                type=setting.kind if setting.kind in (int, float) else str,
                choices=setting.choices or None,
                metavar=None if setting.choices else {int: "N", float: "X"}.get(setting.kind, "TEXT"),
                help=_help(setting),
            )


def _given(flags: argparse.Namespace, method: str) -> dict[str, Any]:
    """The flags that the user typed."""
    return {flag: getattr(flags, flag) for flag in job_flags(method) if getattr(flags, flag) is not None}


def job_from_flags(flags: argparse.Namespace, method: str) -> Job:
    """The job with ``method`` that the flags describe, named after its output folder unless ``--run_name`` is given.

    Raises:
        BadInput: a required flag is missing, or a value is out of range.
    """
    given, known = _given(flags, method), job_flags(method)
    for flag, setting in known.items():
        if setting.default is MISSING and setting.name != "run_name" and flag not in given:
            raise BadInput(f"--{flag} is required, or --job with a job file")
    given.setdefault("run_name", Path(given["output_dir"]).resolve().name)
    mapping: dict[str, Any] = {"method": method}
    for flag, value in given.items():
        setting = known[flag]
        (mapping.setdefault(setting.section, {}) if setting.section else mapping)[setting.name] = value
    with errors_name_flags(method):
        return build(Job, mapping)


@contextlib.contextmanager
def errors_name_flags(method: str) -> Iterator[None]:
    """Let the message of a BadInput name settings by the flags of a method's program, where the user typed flags."""
    try:
        yield
    except BadInput as error:
        text = str(error)
        for flag, setting in job_flags(method).items():
            where = r"(?<![\w./-])" if setting.section else "^"
            text = re.sub(rf"{where}{re.escape(setting.key)}(?![\w./])", f"--{flag}", text)
        error.args = (text,)
        raise


def training_job(argv: Sequence[str] | None, description: str, method: str) -> tuple[Job, argparse.Namespace]:
    """Parse the command line of a method's program: ``--job FILE``, or flags; ``--check``.

    A job file says itself which method it is for.

    Returns:
        The job, and the parsed command line; its ``passed_over`` are warnings of flags without an effect.

    Raises:
        BadInput: the job file or a flag is wrong, or a flag contradicts --job.
    """
    parser = Parser(description)
    parser.add_argument(
        "--job",
        metavar="FILE",
        help=f"job file (YAML); only --check, --{', --'.join(_AT_START)} may be given with it",
    )
    parser.add_argument("--check", action="store_true", help="check the job and its inputs, then exit")
    add_job_flags(parser, method)
    add_other_flags(parser)
    flags = parser.parse_args(argv)
    given = _given(flags, method)
    if flags.job is None:
        flags.passed_over = other_flag_warnings(flags, method, given)
        return job_from_flags(flags, method), flags
    flags.passed_over = []
    others = [flag for flag in OTHER_FLAGS if getattr(flags, flag) is not None]
    also = [f"--{flag}" for flag in (*given, *others) if flag not in _AT_START]
    if also:
        raise BadInput(f"--job and {also[0]} exclude each other: change the value in the job file")
    job = read_yaml(flags.job, Job)
    overwrite = given.pop("overwrite", job.overwrite)
    return dataclasses.replace(job, overwrite=overwrite, training=dataclasses.replace(job.training, **given)), flags
