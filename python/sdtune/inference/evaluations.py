"""The evaluations of a UNet while a pipeline generates, and the two ways to compute less of them.

The guidance interval (arXiv 2404.07724) skips the unconditional half of a batch at some steps; the feature cache
(:mod:`.feature_cache`) computes only a part of the UNet's layers at some steps. Both can be used together.
"""

from typing import Any, Protocol

import torch


class Cache(Protocol):
    """What :class:`Evaluations` needs of a feature cache."""

    def begin(self) -> None:
        """Forget the features of an earlier call."""

    def evaluate(self, number: int, part: str, inputs: dict[str, Any]) -> torch.Tensor:
        """The predicted noise of evaluation ``number``, for the samples of ``part``."""


class Evaluations:
    """Replaces the ``forward`` of a pipeline's UNet, and computes what the interval and the cache leave of it.

    At every step the pipeline passes both halves, and combines the outputs as
    ``negative + scale * (positive - negative)``. Outside of the guidance interval it gets the positive output twice,
    and so that sum is the positive output. With an interval, the halves of a guided step are computed one after the
    other, so that the UNet has the same batch size at all steps.
    """

    def __init__(
        self, pipeline: Any, *, interval: tuple[float, float] | None = None, cache: Cache | None = None
    ) -> None:
        """Replace it.

        Args:
            pipeline: whose UNet is evaluated.
            interval: of the steps with guidance, as shares of all steps; None: a batch is computed as it is passed.
            cache: computes; None: the UNet's own ``forward`` does.
        """
        self._pipeline, self._interval, self._cache = pipeline, interval, cache
        self._forward = pipeline.unet.forward
        self._number = 0
        self.samples = 0
        """Samples that were computed; with full guidance an image takes two at each evaluation."""
        pipeline.unet.forward = self

    def begin(self) -> None:
        """Count the evaluations of a new call from 0."""
        self._number = 0
        if self._cache:
            self._cache.begin()

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any) -> tuple[Any]:
        """``sample`` [2 n, ...] and its conditioning, the negative half first -> output of the same shape."""
        parts = self._parts(len(sample))
        outputs = []
        for name, part in parts.items():
            tensors = {"sample": sample[part], "encoder_hidden_states": encoder_hidden_states[part]}
            self.samples += len(tensors["sample"])
            outputs.append(self._evaluate(name, {**tensors, "timestep": timestep}, _part(options, part)))
        self._number += 1
        return (torch.cat([outputs[0], outputs[-1]]) if self._interval else outputs[0],)

    def _parts(self, samples: int) -> dict[str, slice]:
        """{name: the samples} that are computed together, in this order."""
        if self._interval is None:
            return {"all": slice(None)}
        share = self._number / len(self._pipeline.scheduler.timesteps)
        negative, positive = slice(0, samples // 2), slice(samples // 2, None)
        guided = self._interval[0] <= share < self._interval[1]
        return {"negative": negative, "positive": positive} if guided else {"positive": positive}

    def _evaluate(self, part: str, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
        if self._cache is None:
            return self._forward(**inputs, **options)[0]
        more = {"timestep_cond": options.get("timestep_cond"), **(options.get("added_cond_kwargs") or {})}
        present = {name: value for name, value in more.items() if value is not None}
        return self._cache.evaluate(self._number, part, inputs | present)


def _part(options: Any, part: slice) -> Any:
    """Arguments of some samples: tensors are cut, in dictionaries too; what is no tensor is the same for all."""
    if isinstance(options, dict):
        return {name: _part(value, part) for name, value in options.items()}
    return options[part] if isinstance(options, torch.Tensor) else options
