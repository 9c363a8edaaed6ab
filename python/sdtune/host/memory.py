"""How much memory drawing will take, predicted from a pipeline's configuration before any of it is loaded."""

import json
import math
import resource
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

_PARTS = ("text_encoder", "unet", "vae")
# Live activations, as multiples of one full-resolution feature map. Low estimates, not measurements: what they refuse
# cannot fit, and what they let through may still be too much.
_UNET_MAPS = 12
_DECODER_MAPS = 4
_INTERPRETER = 700_000_000  # Python with torch, diffusers and OpenVINO loaded


@dataclass(frozen=True, kw_only=True)
class Size:
    """What memory depends on."""

    parameters: int
    """Of all networks that draw."""
    unet_channels: int
    """Of the UNet's feature maps at full latent resolution."""
    decoder_channels: int
    """Of the decoder's widest feature map at full picture resolution."""
    factor: int
    """Pixels along the side of a latent cell."""


def _parameters(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]
            total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total


def size_of(model: Path) -> Size:
    """Read the size off a pipeline in diffusers layout."""
    unet = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))
    vae = json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))
    widths = vae["block_out_channels"]
    return Size(
        parameters=sum(_parameters(model / part) for part in _PARTS),
        unet_channels=unet["block_out_channels"][0],
        decoder_channels=widths[min(1, len(widths) - 1)],  # what the last upsampling leaves
        factor=2 ** (len(widths) - 1),
    )


def predicted(size: Size, pictures: int, height: int, width: int, *, guided: bool, bf16: bool) -> int:
    """Bytes that one process takes to draw ``pictures`` at once."""
    element = 2 if bf16 else 4
    latents = (height // size.factor) * (width // size.factor)
    unet = _UNET_MAPS * (2 if guided else 1) * pictures * latents * size.unet_channels
    decoder = _DECODER_MAPS * pictures * height * width * size.decoder_channels
    return _INTERPRETER + element * (size.parameters + unet + decoder)


def available() -> int:
    """Bytes that can be had without swapping, by the kernel's estimate."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(value.split()[0])
    raise RuntimeError("/proc/meminfo does not say MemAvailable")


def peak() -> int:
    """Bytes that this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
