"""Warnings and hints about a run. Each says what was observed, and what to do about it."""

from collections.abc import Iterator
from statistics import median

from sdtune.host.processor import has_bf16
from sdtune.report.record import Rank, RunRecord

SLOW = 1.15
"""A rank is slow from this multiple of the median compute time on."""


def slow_ranks(ranks: list[Rank]) -> list[Rank]:
    """Ranks whose compute time is more than :data:`SLOW` times the median."""
    if len(ranks) < 2:
        return []
    typical = median(r.compute_s for r in ranks)
    return [r for r in ranks if r.compute_s > SLOW * typical]


def _about_speed(run: RunRecord) -> Iterator[str]:
    typical = median(r.compute_s for r in run.ranks) if run.ranks else 0.0
    slow = slow_ranks(run.ranks)
    for name in dict.fromkeys(r.host for r in slow):
        these = [r for r in slow if r.host == name]
        which = ("rank " if len(these) == 1 else "ranks ") + ", ".join(str(r.number) for r in these)
        worst = max(r.compute_s for r in these) / typical
        yield (
            f"Slow: {which} on {name} computed up to {worst:.1f} times as long as the median rank, and all others "
            f"waited for it. Look for other processes, high temperature or a power limit on that host."
        )
    for host in run.hosts:
        if host.get("tcmalloc") is False:
            yield (
                f"{host['host']} trained without tcmalloc, with the slower allocator of the C library. Start runs with "
                f"train.yml or launch.sh, which load tcmalloc."
            )
    link = [h for h in run.hosts if (h.get("link_mbit") or 1000) < 1000]
    for host in link:
        yield f"{host['host']} has a network link of only {host['link_mbit']} Mbit/s on {host['interface']}."
    for key, what in (("instruction_set", "instruction sets"), ("threads_per_rank", "numbers of threads")):
        values = {str(h.get(key)) for h in run.hosts}
        if len(values) > 1:
            yield f"The hosts differ in their {what} ({', '.join(sorted(values))}): the slowest decides the step time."
    packages = set(run.packages.values())
    if len(packages) > 1:
        yield "The hosts' environments hold different packages. Run ansible-playbook provision.yml to make them equal."


def _about_stack(run: RunRecord) -> Iterator[str]:
    precision = run.start.get("mixed_precision", run.setting("training", "mixed_precision"))
    without = [h["host"] for h in run.hosts if not has_bf16(h.get("features", []))]
    if precision == "bf16" and without:
        yield (
            f"bf16 on processors without bf16 instructions ({', '.join(without)}): emulation is slow. "
            f'Train with training_mixed_precision: "no".'
        )
    if run.job.get("software_stack") == "ipex":
        yield (
            "This run used Intel Extension for PyTorch. It is archived and gets no more fixes; the stack native does "
            "the same with PyTorch alone."
        )


def _about_learning(run: RunRecord) -> Iterator[str]:
    if run.unproven:
        yield f"This run is not known to have finished: {run.unproven}. Train it again to be sure of what it learned."
    elif run.finished is None:
        yield "This run has not finished: the page shows its progress."
    elif run.finished.get("stopped_early"):
        yield f"Stopped early at step {run.finished['steps']}, because the validation loss did not improve any more."
    losses = [v["loss"] for v in run.validations]
    if len(losses) > 1 and losses[-1] >= losses[0]:
        yield "The validation loss did not decrease: nothing was learned. Try another learning rate, or more steps."
    if run.resumes:
        yield f"Resumed {'once' if run.resumes == 1 else f'{run.resumes} times'} from a checkpoint."


def findings(run: RunRecord) -> list[str]:
    """All findings about a run, the most important first."""
    return [*_about_learning(run), *_about_speed(run), *_about_stack(run)]
