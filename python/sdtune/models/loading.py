"""Networks of a model folder: loaded with all of their weights, or refused; and judged without reading a weight.

The libraries give a tensor that a file lacks random numbers, and say so in a log. A network is loaded here, and
nowhere else, so that none is used with numbers that nobody has trained.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdtune.errors import BadInput, shown
from sdtune.models.folder import read_config, refusing
from standalone.model_folder import ModelError, find_weights, read_header, without_prefix

_IGNORED = ("position_ids",)
"""Ends of the names of buffers that older versions of transformers saved."""


def _listed(names: Collection[str]) -> str:
    """The first of some names, and how many there are."""
    first = min(names)
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def tensor_problem(part: str, wanted: Mapping[str, Any], found: Mapping[str, Any], *, exact: bool) -> str:
    """What is wrong with the tensors of a part, after the words "the model folder X"; empty if they are all there.

    Args:
        part: its subfolder.
        wanted: {name: shape} of what the network needs.
        found: {name: shape} of its files.
        exact: whether a tensor that the network does not need is wrong too.
    """
    missing, unused = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    unused = {name for name in unused if not name.endswith(_IGNORED)}
    if missing:
        instead = f"; they hold {_listed(unused)}, which it does not need" if unused else ""
        hint = (
            " (names that torch.compile makes: save the network that was compiled, ._orig_mod)"
            if any("_orig_mod" in name for name in unused)
            else ""
        )
        return f"has weights in {part}/ that lack {_listed(missing)}{instead}{hint}"
    wrong = {name: found[name] for name in wanted if tuple(found[name]) != tuple(wanted[name])}
    if wrong:
        name = min(wrong)
        return (
            f"has weights in {part}/ that its configuration contradicts: {_listed(wrong)} has the shape "
            f"{list(wrong[name])}, not {list(wanted[name])}"
        )
    if exact and unused:
        return f"has weights in {part}/ that its configuration does not need: {_listed(unused)}"
    return ""


def _shapes_of_files(model: Path, part: str, stem: str, network: nn.Module) -> dict[str, torch.Size]:
    """{name: shape} of the tensors of a part, from the headers of its files, under the names that the library uses."""
    tensors = {
        name: torch.empty(facts.shape, device="meta")
        for path in find_weights(model, part, stem).files
        for name, facts in read_header(path).items()
    }
    rename = getattr(network, "_fix_state_dict_keys_on_load", None)  # diffusers': names of its first versions
    if rename is not None:
        rename(tensors)
    return {name: tensor.shape for name, tensor in tensors.items()}


def _guilty(config: Mapping[str, Any], attempt: Callable[[dict[str, Any]], object]) -> str:
    """The key of a configuration without which the attempt succeeds, with its value; empty if there is no such key."""
    for key in config:
        try:
            attempt({other: value for other, value in config.items() if other != key})
        except Exception:  # noqa: BLE001 - it is not this key
            continue
        return f" with {key}: {shown(config[key])}"
    return ""


def network_problem(
    model: Path,
    part: str,
    make: Callable[[dict[str, Any]], nn.Module],
    call: Callable[[Any], object],
    *,
    stem: str = "diffusion_pytorch_model",
    setting: str = "model.path",
) -> str:
    """What is wrong with a network of a model folder, after the words "the model folder X"; empty if nothing is.

    Nothing is allocated: the network is made, and computes, on the meta device.

    Args:
        model: the folder.
        part: the network's subfolder.
        make: makes the network of a configuration.
        call: lets the network compute one small sample.
        stem: first part of the names of its weight files.
        setting: that names the folder, for errors.

    Raises:
        BadInput: the configuration makes no network, or one that cannot compute.
    """
    config = read_config(model / part / "config.json", setting)
    with torch.device("meta"), torch.no_grad():
        try:
            network = make(config)
        except Exception:  # noqa: BLE001 - raised again below, with the key
            key = _guilty(config, make)
            with refusing(model, f"holds a {part}/config.json{key} that makes no network", setting):
                network = make(config)
    try:
        found = _shapes_of_files(model, part, stem, network)
    except ModelError as error:
        return str(error)
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    ours = hasattr(network, "_fix_state_dict_keys_on_load")
    problem = tensor_problem(
        part,
        wanted if ours else without_prefix(wanted),
        found if ours else without_prefix(found),
        exact=ours,
    )
    if problem:
        return problem
    with torch.device("meta"), torch.no_grad():
        try:
            call(network)
        except Exception:  # noqa: BLE001 - as above
            key = _guilty(config, lambda other: call(make(other)))
            with refusing(model, f"holds a {part}/config.json{key} whose network cannot compute", setting):
                call(network)
    return ""


def load_network(cls: Any, model: Path, part: str, setting: str = "model.path", **options: Any) -> Any:
    """Load a network by its library's ``from_pretrained``, with all of its weights.

    Args:
        cls: its class.
        model: folder of the pipeline.
        part: its subfolder.
        setting: that names the folder, for errors.
        options: of ``from_pretrained``.

    Raises:
        BadInput: weights are missing, have other shapes, or are not finite; the message names the file.
    """
    with refusing(model, f"has weights in {part}/ that cannot be loaded", setting):
        network, info = cls.from_pretrained(
            model, subfolder=part, use_safetensors=True, output_loading_info=True, **options
        )
    lacking = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    if lacking:
        raise BadInput(f"{setting}: {model} has weights in {part}/ that lack {_listed(lacking)}; fetch the model again")
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadInput(
                f"{setting}: {model} has weights in {part}/ that are not finite, such as {name}: the model itself is "
                f"damaged, or was saved after a training that had diverged; fetch it again"
            )
    return network


def schedule_problem(scheduler: Any) -> str:
    """What is wrong with the noise schedule of a model, after the words "the model folder X"; empty if nothing is."""
    betas, kept = scheduler.betas, scheduler.alphas_cumprod
    if len(kept) != (steps := scheduler.config.num_train_timesteps):
        return (
            f"has a noise schedule in scheduler/scheduler_config.json of {len(kept)} betas (trained_betas), and "
            f"{steps} timesteps (num_train_timesteps)"
        )
    if bool(((betas >= 0) & (betas <= 1)).all()) and bool(kept[0] > kept[-1]):  # not for NaN
        return ""
    return (
        "has a noise schedule in scheduler/scheduler_config.json that does not go from 1 towards 0 (beta_start, "
        "beta_end, beta_schedule)"
    )
