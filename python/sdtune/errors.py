"""The errors that sdtune raises on purpose."""

from collections.abc import Sequence


class BadInput(Exception):
    """The job cannot be done as it was asked for. The message names the cause and the remedy. Exit code 2."""


class HostBusy(BadInput):
    """Another run uses cores of a host that this one needs. Exit code 2."""

    USED_BY = " is used by "
    """Between the host and the other run, which a semicolon ends."""


class PortTaken(BadInput):
    """A program has taken the port where the ranks meet, since it was free a moment ago. Exit code 2."""


class TrainingFailed(Exception):
    """Training stopped because its result would be wrong, for example after a loss of NaN. Exit code 1."""


class Stopped(Exception):
    """Training stopped on request, after a checkpoint. Exit code 3."""


class DrawingFailed(Exception):
    """A process that generates images ended with an error of its own, which it has printed. Exit code 1."""


def refuse(setting: str, problems: Sequence[str], most: int = 10) -> None:
    """Raise one error for everything that is wrong with the value of a setting, if anything is.

    Args:
        setting: such as ``data.path``.
        problems: each names what is wrong, and the remedy.
        most: so many are listed; of more, the number is told.

    Raises:
        BadInput: with all problems.
    """
    if problems:
        more = f"; and {len(problems) - most} more like these" if len(problems) > most else ""
        raise BadInput(f"{setting}: {'; '.join(problems[:most])}{more}")


def shown(value: object, most: int = 80) -> str:
    """A value as a message quotes it: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
