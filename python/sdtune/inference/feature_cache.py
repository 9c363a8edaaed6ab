"""Feature caching (DeepCache, arXiv 2312.00858): between two whole evaluations, only the UNet's outer layers compute.

Each layer of a UNet's up blocks takes the output of the layer before it, and a skip connection from a down block. What
comes from the layer before, the deep feature, changes little between neighbouring steps. Branch 0 keeps the feature
that the last layer takes, so a shallow evaluation computes the first convolution and that layer; branch 1 computes one
layer more on both sides, and so on.

Both UNets are cut out of the one that is exported, when it is loaded. So they are one file on disk, mapped into memory
once, and every branch of any export is there.
"""

from typing import Any

import numpy as np
import openvino
import torch

_FEATURE = "deep_feature"


def _joints(unet: openvino.Model) -> list[Any]:
    """The operations that join the deep feature (input 0) with a skip connection, the outermost first.

    Each is a concatenation of two feature maps along their channels; no other operation of a UNet is one.
    """
    found = [
        op
        for op in unet.get_ordered_ops()
        if op.get_type_name() == "Concat"
        and op.get_attributes()["axis"] == 1
        and op.get_output_partial_shape(0).rank == openvino.Dimension(4)
    ]
    return found[::-1]


def count_branches(unet: openvino.Model) -> int:
    """How many branches a UNet has; 0: there is nothing to cache."""
    return len(_joints(unet))


def split(unet: openvino.Model, branch: int) -> tuple[openvino.Model, openvino.Model]:
    """The whole UNet, whose second output is the deep feature, and the shallow one, which has it as its last input.

    Both share the memory of the weights of ``unet``, which is not changed.
    """
    whole, shallow = unet.clone(), unet.clone()
    feature = _joints(whole)[branch].input_value(0)
    feature.get_tensor().set_names({*feature.get_names(), _FEATURE})
    whole.add_outputs(feature)
    joint = _joints(shallow)[branch]
    taken = openvino.op.Parameter(feature.get_element_type(), feature.get_partial_shape())
    taken.output(0).get_tensor().set_names({_FEATURE})
    joint.input(0).replace_source_output(taken.output(0))
    # made anew, so that it holds only what its output depends on
    return whole, openvino.Model(
        shallow.get_results(), [*shallow.get_parameters(), taken], f"{unet.get_name()}_shallow"
    )


class Forecast:
    """The deep feature of an evaluation, from those of the last two whole ones.

    It goes on along the line through both (arXiv 2503.06923), which is nearer than the last feature itself while the
    interval is a small part of all steps; with only one it is that one.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, Any]] = []

    def keep(self, number: int, feature: Any) -> None:
        """Keep the feature of evaluation ``number``, a whole one."""
        self._kept = [*self._kept[-1:], (number, feature)]

    def is_of(self, first: int) -> bool:
        """Whether the last one kept is of evaluation ``first`` or a later one."""
        return bool(self._kept) and self._kept[-1][0] >= first

    def at(self, number: int) -> Any:
        """The feature of evaluation ``number``, after the last whole one."""
        last, feature = self._kept[-1]
        if len(self._kept) == 1:
            return feature
        before, older = self._kept[0]
        return feature + (feature - older) * np.float32((number - last) / (last - before))


class FeatureCache:
    """The two UNets of a pipeline, compiled at their first use, and the features of the last whole evaluations."""

    def __init__(self, unet: Any, interval: int, branch: int) -> None:
        """Nothing is compiled yet.

        Args:
            unet: of an OpenVINO pipeline, with the shapes that it will have.
            interval: one of so many evaluations is whole.
            branch: whose feature is kept, see :func:`count_branches`.
        """
        self._interval, self._config = interval, unet.ov_config
        self._models = split(unet.model, branch)
        self._compiled: dict[bool, openvino.CompiledModel] = {}
        self._features: dict[str, Forecast] = {}
        self.evaluations = {"whole": 0, "shallow": 0}
        """How many there were of each kind."""

    def begin(self) -> None:
        """Forget the features of an earlier call."""
        self._features = {}

    def evaluate(self, number: int, part: str, inputs: dict[str, Any]) -> torch.Tensor:
        """Predicted noise.

        Args:
            number: of the evaluation in this call, from 0.
            part: which samples of the batch these are; each part has its own features.
            inputs: {name: tensor} of the UNet.
        """
        features = self._features.setdefault(part, Forecast())
        # whole also where this part was left out when the others were
        if features.is_of(number - number % self._interval):
            self.evaluations["shallow"] += 1
            outputs = self._run(inputs | {_FEATURE: features.at(number)}, whole=False)
        else:
            self.evaluations["whole"] += 1
            outputs = self._run(inputs, whole=True)
            features.keep(number, outputs[1])
        return torch.from_numpy(outputs[0])

    def _run(self, inputs: dict[str, Any], *, whole: bool) -> Any:
        if whole not in self._compiled:
            model = self._models[0 if whole else 1]
            self._compiled[whole] = openvino.Core().compile_model(model, "CPU", self._config)
        return self._compiled[whole](inputs, share_inputs=True)
