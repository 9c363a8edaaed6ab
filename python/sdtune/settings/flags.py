"""Flags of ``textual_inversion.py``: those of diffusers' script of that name and our own, each with a help text."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput
from sdtune.settings.fields import MISSING, Setting, sections_of, settings_of
from sdtune.settings.job import Job
from sdtune.settings.load import build, read_yaml

# arguments of a start rather than of the run: allowed together with --job
_AT_START = ("overwrite", "resume_from_checkpoint", "resume_reshard", "world_size", "gradient_accumulation_steps")
# sections that only a job file sets
_WITHOUT_FLAGS = ("openvino",)


def job_flags() -> dict[str, Setting]:
    """{flag: setting} of a training job."""
    return {
        setting.flag: setting
        for section in sections_of(Job)
        if section.section not in _WITHOUT_FLAGS
        for setting in settings_of(section)
        if not setting.nested
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


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a flag for each setting of a training job, with its meaning and default."""
    for section in sections_of(Job):
        group = parser.add_argument_group((section.__doc__ or "").rstrip("."))
        for flag, setting in job_flags().items():
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


def _given(flags: argparse.Namespace) -> dict[str, Any]:
    """The flags that the user typed."""
    return {flag: getattr(flags, flag) for flag in job_flags() if getattr(flags, flag) is not None}


def job_from_flags(flags: argparse.Namespace) -> Job:
    """The job that the flags describe; the run is named after its output folder unless ``--run_name`` is given.

    Raises:
        BadInput: a required flag is missing, or a value is out of range.
    """
    given = _given(flags)
    for needed in ("pretrained_model_name_or_path", "train_data_dir", "output_dir"):
        if needed not in given:
            raise BadInput(f"--{needed} is required, or --job with a job file")
    given.setdefault("run_name", Path(given["output_dir"]).resolve().name)
    mapping: dict[str, Any] = {}
    for flag, value in given.items():
        setting = job_flags()[flag]
        (mapping.setdefault(setting.section, {}) if setting.section else mapping)[setting.name] = value
    return build(Job, mapping)


def training_job(argv: Sequence[str] | None, description: str) -> tuple[Job, argparse.Namespace]:
    """Parse the command line of ``textual_inversion.py``: ``--job FILE``, or flags; ``--check`` and ``--warnings``.

    Raises:
        BadInput: the job file or a flag is wrong, or a flag contradicts --job.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--job",
        metavar="FILE",
        help=f"job file (YAML); only --check, --warnings, --{', --'.join(_AT_START)} may be given with it",
    )
    parser.add_argument("--check", action="store_true", help="check the job and its inputs, then exit")
    parser.add_argument("--warnings", metavar="FILE", help="with --check: also write the warnings to FILE, as JSON")
    add_job_flags(parser)
    flags = parser.parse_args(argv)
    if flags.job is None:
        return job_from_flags(flags), flags
    given = _given(flags)
    also = [f"--{flag}" for flag in given if flag not in _AT_START]
    if also:
        raise BadInput(f"--job and {also[0]} exclude each other: change the value in the job file")
    job = read_yaml(flags.job, Job)
    overwrite = given.pop("overwrite", job.overwrite)
    return dataclasses.replace(job, overwrite=overwrite, training=dataclasses.replace(job.training, **given)), flags
