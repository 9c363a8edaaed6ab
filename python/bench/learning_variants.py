"""Ways of learning a token that ``learning.py`` compares, and one training with one of them."""

import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from contenders import Stage, run
from toyworld_stage import caption_losses

from sdtune.launch.run_folder import Run
from sdtune.methods.method import Learned
from sdtune.settings import Job, TrainingArgs, build
from sdtune.training.metrics import read_metrics
from sdtune.training.shares import INTERVALS, PER_INTERVAL
from sdtune.training.trainer import train
from toyworld.captions import best_captions
from toyworld.toys import CONCEPTS

TOYWORLD = Path(__file__).parents[2] / "toyworld"
GLOBAL_BATCH = 16
_RANGE_STEPS, _RANGE, _RANGE_TRIPLES = 20, (1e-3, 1e-1), 16
"""Steps of a learning-rate range test, its lowest and highest rate, and the triples that it validates on."""


@dataclass(frozen=True)
class Variant:
    """A way of learning."""

    training: dict[str, Any] = field(default_factory=dict)
    """Settings of the section training that are not the default."""
    data: dict[str, Any] = field(default_factory=dict)
    """The same of the section data."""
    how: str = ""
    """What no setting does: ``prodigy``, ``range-test``, or ``script``, diffusers' loop on 4 ranks."""


COSINE = {"lr_scheduler": "cosine"}
AUTO = {"initializer_token": "auto"}
VARIANTS: dict[str, Variant] = {
    "default": Variant(),
    "auto": Variant(data=AUTO),
    "rate-1e-2-cosine": Variant({"learning_rate": 1e-2, **COSINE}),
    "auto-1e-2-cosine": Variant({"learning_rate": 1e-2, **COSINE}, AUTO),
    "measured": Variant({"timestep_sampling": "measured"}),
    "fixed-norm": Variant({"embedding_norm": "fixed"}),
    "prodigy-cosine": Variant({"learning_rate": 1.0, **COSINE}, how="prodigy"),
    "cosine": Variant(COSINE),
    "spread": Variant({"timestep_sampling": "spread"}),
    "noise-pairs": Variant({"noise_pairs": True}),
    "measured-pairs": Variant({"timestep_sampling": "measured", "noise_pairs": True}),
    "rate-2e-2-cosine": Variant({"learning_rate": 2e-2, **COSINE}),
    "prodigy": Variant({"learning_rate": 1.0}, how="prodigy"),
    "range-test": Variant(how="range-test"),
    "range-test-cosine": Variant(COSINE, how="range-test"),
    **{f"batch-{size}": Variant({"train_batch_size": size}) for size in (4, 8, 32)},
    "script": Variant(how="script"),
}


def make_job(variant: Variant, concept: str, seed: int, steps: int, run_dir: Path) -> Job:
    """The run of a variant, validated every second step."""
    return build(
        Job,
        {
            "run_name": "learning",
            "run_dir": str(run_dir),
            "seed": seed,
            "model": {"path": str(TOYWORLD / "model")},
            "data": {"path": str(TOYWORLD / concept), "resolution": 64, **variant.data},
            "training": {
                "max_train_steps": steps,
                "train_batch_size": GLOBAL_BATCH,
                "mixed_precision": "no",
                "checkpointing_steps": 0,
                "report_to": "none",
                "save_as_full_pipeline": False,
                **variant.training,
            },
            "validation": {"steps": 2, "triples": 64},
        },
    )


def best_caption(concept: str) -> tuple[str, float]:
    """The best caption of a concept, and its loss on the triples of the trainings."""
    with tempfile.TemporaryDirectory(prefix="sdtune-learning-") as folder:
        losses = caption_losses(make_job(Variant(), concept, 1, 1, Path(folder)), best_captions(CONCEPTS[concept][0]))
    best = min(losses, key=losses.__getitem__)
    return best, losses[best]


def prodigy(learned: Collection[Learned], settings: TrainingArgs, scale: int) -> torch.optim.Optimizer:
    """Prodigy (arXiv 2306.06101) of the package prodigyopt, as diffusers' scripts use it."""
    from prodigyopt import Prodigy

    parameters = [one.parameter for one in learned]
    made: torch.optim.Optimizer = Prodigy(
        parameters,
        lr=settings.learning_rate * scale,
        weight_decay=settings.adam_weight_decay,
        use_bias_correction=True,
        safeguard_warmup=True,
    )
    return made


def growing_rate(optimizer: torch.optim.Optimizer, settings: TrainingArgs) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of a range test: the rate grows by the same factor in each step."""
    low, high = _RANGE
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: low / settings.learning_rate * (high / low) ** (step / (_RANGE_STEPS - 1))
    )


@contextmanager
def changes(variant: Variant) -> Iterator[None]:
    """What no setting does."""
    with ExitStack() as stack:
        if variant.how == "prodigy":
            stack.enter_context(patch("sdtune.training.trainer.make_optimizer", prodigy))
        yield


def range_test(job: Job) -> float:
    """The learning rate that a short range test finds: a third of that after which the loss was lowest (Smith 2017)."""
    short = replace(
        job,
        run_dir=f"{job.run_dir}-range",
        training=replace(job.training, max_train_steps=_RANGE_STEPS, lr_scheduler="constant"),
        validation=replace(job.validation, steps=1, triples=_RANGE_TRIPLES),
    )
    with patch("sdtune.training.trainer.make_schedule", growing_rate):
        train(short)
    lines = read_metrics(Run(short.run_dir).metrics)
    losses = {m["step"]: m["loss"] for m in lines if m["kind"] == "validation" and m["step"]}
    best = min(losses, key=losses.__getitem__)
    return next(float(m["lr"]) for m in lines if m["kind"] == "step" and m["step"] == best) / 3


def before(variant: Variant, lines: list[dict[str, Any]]) -> float:
    """Samples that were computed before the first step, in training samples: one without gradient counts half."""
    samples = sum(line["samples"] / 2 for line in lines if line["kind"] == "starting_point")
    if variant.training.get("timestep_sampling") == "measured":
        samples += INTERVALS * PER_INTERVAL
    if variant.how == "range-test":
        samples += _RANGE_STEPS * (GLOBAL_BATCH + _RANGE_TRIPLES / 2)
    return samples


def script(concept: str, seed: int, steps: int) -> dict[str, Any]:
    """Train with the plain loop, which does what diffusers' script does, on 4 ranks."""
    costs = run(
        "plain",
        Stage(
            python=Path(sys.executable),
            stack="native",
            model=TOYWORLD / "model",
            pictures=TOYWORLD / concept,
            resolution=64,
            steps=steps,
            ranks=4,
            batch=GLOBAL_BATCH // 4,
            seed=seed,
            validation_steps=2,
            mixed_precision="no",
        ),
    )
    return {"losses": costs.validation, "step_s": [costs.step_s] * steps, "samples_before": 0, "seconds_before": 0}


def learn(variant: Variant, concept: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once.

    Returns:
        ``losses`` by step, ``step_s`` of each step, ``samples_before`` and ``seconds_before`` the first step.
    """
    if variant.how == "script":
        return script(concept, seed, steps)
    with tempfile.TemporaryDirectory(prefix="sdtune-learning-") as folder, changes(variant):
        job = make_job(variant, concept, seed, steps, Path(folder) / "run")
        began = time.perf_counter()
        if variant.how == "range-test":
            job = replace(job, training=replace(job.training, learning_rate=range_test(job)))
        seconds = time.perf_counter() - began if variant.how == "range-test" else 0.0
        train(job)
        lines = read_metrics(Run(job.run_dir).metrics)
    chosen = next((line for line in lines if line["kind"] == "starting_point"), None)
    return {
        "losses": {line["step"]: line["loss"] for line in lines if line["kind"] == "validation"},
        "step_s": [line["step_s"] for line in lines if line["kind"] == "step"],
        "samples_before": before(variant, lines),
        "seconds_before": seconds + (chosen["seconds"] if chosen else 0.0),
        "starting_point": chosen["point"] if chosen else None,
        "learning_rate": job.training.learning_rate,
    }
