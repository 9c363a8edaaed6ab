"""What is found out once in a run, before its first step: where to start, and how often which timesteps are used.

A checkpoint keeps the results, so a resumed run has the same without computing them again.
"""

import time
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn

from sdtune.methods.method import Method
from sdtune.models.family import Networks
from sdtune.settings import Job
from sdtune.training.batches import Batches
from sdtune.training.checkpoint import Progress
from sdtune.training.recorder import Recorder
from sdtune.training.shares import INTERVALS, PER_INTERVAL, measure_shares
from sdtune.training.starting import Search


def values_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Copies of all parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


class Beginning:
    """The work before the first step. All ranks have one, and call the same methods in the same order."""

    def __init__(
        self, job: Job, networks: Networks, method: Method, batches: Batches, accelerator: Accelerator
    ) -> None:
        """Nothing is computed yet."""
        self._job, self._networks, self._method = job, networks, method
        self._batches, self._accelerator = batches, accelerator

    def start(
        self,
        parameters: Mapping[str, nn.Parameter],
        initial: Mapping[str, torch.Tensor],
        progress: Progress,
        recorder: Recorder,
    ) -> Mapping[str, torch.Tensor]:
        """Set ``parameters`` to the start of a new run, which is chosen where the method leaves it open.

        Args:
            parameters: all learned parameters, by name; those of a resumed run keep their values.
            initial: their values as the method made them.
            progress: keeps the choice.
            recorder: records it.

        Returns:
            The values before the first step of the run.
        """
        points, current = self._method.starting_points, values_of(parameters)
        if points is None:
            return initial
        if progress.start is None:
            began = time.perf_counter()
            triples = self._batches.triples(self._job.validation.triples)
            size = self._job.training.train_batch_size
            search = Search(points, self._method.validation_caption, self._networks, triples, size, self._accelerator)
            start = search.run(parameters.values())
            recorder.starting_point(start, time.perf_counter() - began)
            progress.start = start.point
        points.take(progress.start)
        chosen = values_of(parameters)
        if progress.step:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(current[name])
        return chosen

    def set_timesteps(self, parameters: Mapping[str, nn.Parameter], progress: Progress) -> None:
        """Set the shares of the timesteps, where the job asks for measured ones; ``progress`` keeps them."""
        settings = self._job.training
        if settings.timestep_sampling != "measured":
            return
        if progress.shares is None:
            triples = self._batches.triples(INTERVALS * PER_INTERVAL)
            progress.shares = measure_shares(
                self._networks,
                parameters.values(),
                triples,
                self._method.validation_caption,
                settings.snr_gamma,
                self._accelerator,
            )
        self._batches.set_shares(progress.shares)
