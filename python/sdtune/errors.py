"""The errors that sdtune raises on purpose."""


class BadInput(Exception):
    """The job cannot be done as it was asked for. The message names the cause and the remedy. Exit code 2."""


class HostBusy(BadInput):
    """Another run uses cores of a host that this one needs. Exit code 2."""


class TrainingFailed(Exception):
    """Training stopped because its result would be wrong, for example after a loss of NaN. Exit code 1."""


class Stopped(Exception):
    """Training stopped on request, after a checkpoint. Exit code 3."""


class DrawingFailed(Exception):
    """A process that generates images ended with an error of its own, which it has printed. Exit code 1."""


def shown(value: object, most: int = 80) -> str:
    """A value as a message quotes it: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
