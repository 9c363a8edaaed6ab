"""Learning a direction: parameters whose norm over the last dimension stays what it is at the start.

As in Directional Textual Inversion (arXiv 2512.13672): the gradient is projected to the tangent of the sphere before
the optimizer's step, and the parameter is scaled back to its norm after it.
"""

from collections.abc import Mapping

import torch
from torch import nn


class FixedNorms:
    """The parameters of a run that keep their norms."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], initial: Mapping[str, torch.Tensor]) -> None:
        """Take the parameters by name, and the values before the first step of the run that their norms come from."""
        self._parameters = parameters
        self._norms = {name: initial[name].norm(dim=-1, keepdim=True) for name in parameters}

    @torch.no_grad()
    def before_step(self) -> None:
        """Remove the part of each gradient that would change the norm."""
        for parameter in self._parameters.values():
            if parameter.grad is not None:
                direction = parameter / parameter.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                parameter.grad.sub_((parameter.grad * direction).sum(dim=-1, keepdim=True) * direction)

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale each parameter to its norm."""
        for name, parameter in self._parameters.items():
            parameter.mul_(self._norms[name] / parameter.norm(dim=-1, keepdim=True).clamp(min=1e-12))
