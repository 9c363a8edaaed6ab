"""The errors that sdtune raises on purpose."""


class BadInput(Exception):
    """What the user asked for cannot be done; the message names the thing and the remedy. Exit code 2."""


class TrainingFailed(Exception):
    """Training stopped because going on would be wrong (a loss that is not a number, say). Exit code 1."""


class Stopped(Exception):
    """Training stopped because it was asked to, after a checkpoint. Exit code 3."""


class DrawingFailed(Exception):
    """A process that draws ended with an error of its own, which it has printed. Exit code 1."""
