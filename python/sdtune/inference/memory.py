"""How much memory generation needs, predicted from a pipeline's configuration before any of it is loaded."""

from dataclasses import dataclass
from pathlib import Path

from sdtune.models.folder import refusing
from sdtune.settings import Job
from standalone.model_folder import layout_of, read_config, read_header

# Live activations, as multiples of one full-resolution feature map. Low estimates, not measurements: what they refuse
# cannot fit, and what they accept may still be too much.
_UNET_MAPS = 12
_DECODER_MAPS = 4
_INTERPRETER = 700_000_000  # Python with torch, diffusers and OpenVINO loaded


@dataclass(frozen=True, kw_only=True)
class PipelineSize:
    """The sizes of a pipeline that its memory depends on."""

    parameters: int
    """Of the text encoders, the UNet and the VAE."""
    unet_channels: int
    """Of the UNet's feature maps at full latent resolution."""
    decoder_channels: int
    """Of the decoder's widest feature map at full image resolution."""
    factor: int
    """Downsampling factor of the VAE: pixels along the side of a latent position."""


def _parameters(folder: Path) -> int:
    return sum(t.parameters for path in folder.glob("*.safetensors") for t in read_header(path).values())


def read_size(model: Path) -> PipelineSize:
    """The size of a pipeline in diffusers layout, from its configuration and the headers of its weights.

    Raises:
        BadInput: a file cannot be read.
    """
    with refusing(model, "cannot be read"):
        unet, vae = (read_config(model, part) for part in ("unet", "vae"))
        parameters = sum(_parameters(model / name) for name in layout_of(model).weights)
    channels = vae["block_out_channels"]
    return PipelineSize(
        parameters=parameters,
        unet_channels=unet["block_out_channels"][0],
        decoder_channels=channels[min(1, len(channels) - 1)],  # the output of the last upsampling
        factor=2 ** (len(channels) - 1),
    )


def export_bytes(job: Job, size: PipelineSize) -> int:
    """Bytes of disk that an export takes for a while: the copy, and what it is converted from.

    The conversion keeps float32 weights only for a float32 copy; what it quantizes, it converts to fp16 first.
    """
    converted = 4 if job.openvino.weights == "fp32" else 2
    copied = {"fp32": 4, "fp16": 2}.get(job.openvino.weights, 1)
    return (converted + copied) * size.parameters


def predict_bytes(size: PipelineSize, images: int, height: int, width: int, *, guided: bool, bf16: bool) -> int:
    """Bytes that one process needs to generate ``images`` at once."""
    element = 2 if bf16 else 4
    latents = (height // size.factor) * (width // size.factor)
    unet = _UNET_MAPS * (2 if guided else 1) * images * latents * size.unet_channels
    decoder = _DECODER_MAPS * images * height * width * size.decoder_channels
    return _INTERPRETER + element * (size.parameters + unet + decoder)
