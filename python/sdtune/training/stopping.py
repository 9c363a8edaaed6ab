"""When a run stops early: at a plateau of the validation loss, or when the loss varies little any more."""

from statistics import pvariance

from sdtune.settings import ValidationArgs
from sdtune.training.checkpoint import Progress


def record_validation(progress: Progress, settings: ValidationArgs, loss: float) -> None:
    """Record a validation in ``progress``, which checkpoints keep."""
    progress.validated(loss, settings.early_stopping_min_delta)
    if settings.early_stopping == "variance" and settings.early_stopping_patience > 0:
        progress.losses.append(loss)


def reason_to_stop(progress: Progress, settings: ValidationArgs) -> str:
    """Why a run stops after the last recorded validation; empty if it goes on.

    With ``variance`` this is the rule of Voronov et al., arXiv 2302.04841, for losses on fixed samples.
    """
    window = settings.early_stopping_patience
    if window == 0:
        return ""
    if settings.early_stopping == "plateau":
        return f"{progress.stale} consecutive validations without improvement" if progress.stale >= window else ""
    if len(progress.losses) <= window:
        return ""
    late, everything = pvariance(progress.losses[-window:]), pvariance(progress.losses)
    if late >= settings.early_stopping_variance * everything:
        return ""
    return f"the variance of the last {window} validation losses is {late:.2g}, that of all {everything:.2g}"
