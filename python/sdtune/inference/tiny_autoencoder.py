"""The small decoder for previews: an AutoencoderTiny in a folder of its own, in place of the VAE."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from sdtune.errors import BadInput, shown
from sdtune.models.folder import read_config
from sdtune.models.loading import load_network, network_problem

_SETTING = "tiny_autoencoder"


def _place(folder: str) -> tuple[Path, str]:
    """The folder as a part of the folder that it is in."""
    path = Path(folder).absolute()
    return path.parent, path.name


def check_tiny(folder: str, channels: int) -> None:
    """Check the decoder without loading its weights.

    Args:
        folder: where it is.
        channels: of the latents that it gets.

    Raises:
        BadInput: the folder holds no AutoencoderTiny, or one that cannot decode these latents.
    """
    remedy = "name a folder with an AutoencoderTiny, or leave the setting out"
    if not (Path(folder) / "config.json").is_file():
        raise BadInput(f"{_SETTING}: {folder} holds no AutoencoderTiny (config.json); {remedy}")
    found = read_config(Path(folder) / "config.json", _SETTING).get("_class_name")
    if found != "AutoencoderTiny":
        raise BadInput(f"{_SETTING}: {folder} holds {shown(found)}, not an AutoencoderTiny; {remedy}")

    def decode(network: Any) -> object:
        return network.decode(torch.empty(1, channels, 8, 8))

    problem = network_problem(*_place(folder), AutoencoderTiny.from_config, decode, setting=_SETTING)
    if problem:
        raise BadInput(f"{_SETTING}: {Path(folder).parent} {problem}; {remedy}")


def load_tiny(folder: str) -> AutoencoderTiny:
    """Load the decoder in float32.

    Raises:
        BadInput: it lacks weights, or they are not finite.
    """
    network: AutoencoderTiny = load_network(AutoencoderTiny, *_place(folder), _SETTING, torch_dtype=torch.float32)
    return network.eval()
