"""The frozen networks, the word in them, and the loss of a denoising step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

from sdtune.data.latents import latent_side
from sdtune.errors import BadInput
from sdtune.host.processor import instruction_set
from sdtune.methods.textual_inversion import LearnedEmbedding, add_placeholder, initializer_ids, install
from sdtune.models.weights import default_cache, load_converted, map_tensors
from sdtune.ops.unet import optimize_unet
from sdtune.settings import Job
from sdtune.training.checkpoint import model_fingerprint

DTYPES = {"bf16": torch.bfloat16, "no": torch.float32}


@dataclass(frozen=True)
class Frozen:
    """The networks that are used and never changed, and the word inside the text encoder."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizerFast
    scheduler: DDPMScheduler
    embedding: LearnedEmbedding
    dtype: torch.dtype

    def token_ids(self, captions: Sequence[str]) -> torch.Tensor:
        """int64 [len(captions), tokens], padded and cut to the text encoder's length."""
        ids: torch.Tensor = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return ids


def optimize_with_ipex(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """``unet`` as Intel Extension for PyTorch would have it, with its weights where they are, mapped by all ranks.

    Packed weights would be each rank's own, twice the memory, and our convolutions have theirs transformed already.

    Raises:
        BadInput: the extension is not in this environment.
    """
    try:
        import intel_extension_for_pytorch as ipex  # type: ignore[import-not-found]
    except ImportError as error:
        raise BadInput(
            f"software_stack: ipex is asked for, but intel_extension_for_pytorch does not load ({error}); provision "
            f"with software_stack=ipex, or train with native"
        ) from None
    ipex.disable_auto_channels_last()  # it would copy the kernels, which are channels-last already
    optimized: UNet2DConditionModel = ipex.optimize(unet, dtype=dtype, inplace=True, weights_prepack=False)
    return optimized


def convolution_of(job: Job) -> Literal["winograd", "direct"]:
    """What ``convolution: auto`` comes to on this host."""
    asked = job.training.convolution
    if asked != "auto":
        return asked
    # on a matrix unit products cost less than Winograd's transforms
    return "direct" if job.training.mixed_precision == "bf16" and instruction_set() == "AMX" else "winograd"


def _use_fast_operations(unet: UNet2DConditionModel, job: Job, model: Path, cache: Path, fingerprint: str) -> None:
    side = latent_side(model, job.data.resolution)
    like = {"dtype": unet.dtype, "device": "meta"}
    optimize_unet(
        unet,
        example_inputs={
            "sample": torch.empty(1, unet.config.in_channels, side, side, **like),
            "timestep": torch.empty(1, device="meta"),
            "encoder_hidden_states": torch.empty(1, 1, unet.config.cross_attention_dim, **like),
        },
        attention=job.training.attention,
        convolution=convolution_of(job),
        map_tensors=lambda make: map_tensors(make, cache, f"unet-winograd-{side}", fingerprint, unet.dtype),
    )


def load_frozen(job: Job) -> Frozen:
    """UNet and text encoder in their final type, frozen, with the new word's rows as only parameter.

    Raises:
        BadInput: the tokens do not fit the vocabulary, or the weights' cache has no room.
    """
    model, dtype = Path(job.model.path), DTYPES[job.training.mixed_precision]
    tokenizer = CLIPTokenizerFast.from_pretrained(model, subfolder="tokenizer")
    start = initializer_ids(tokenizer, job.data.initializer_token, job.data.num_vectors)
    ids = add_placeholder(tokenizer, job.data.placeholder_token, job.data.num_vectors)

    cache = Path(job.model.weights_cache) if job.model.weights_cache else default_cache()
    fingerprint = model_fingerprint(model)
    text_encoder = load_converted(
        lambda: CLIPTextModel.from_pretrained(model, subfolder="text_encoder", dtype=dtype, use_safetensors=True),
        lambda: CLIPTextModel(CLIPTextConfig.from_pretrained(model, subfolder="text_encoder")),
        cache,
        "text_encoder",
        fingerprint,
        dtype,
    )
    unet = load_converted(
        lambda: UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=dtype, use_safetensors=True),
        lambda: UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model, subfolder="unet")),
        cache,
        "unet",
        fingerprint,
        dtype,
    )
    _use_fast_operations(unet, job, model, cache, fingerprint)
    if job.software_stack == "ipex":
        unet = optimize_with_ipex(unet, dtype)
    embedding = install(text_encoder, ids, start)
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    return Frozen(unet, text_encoder, tokenizer, scheduler, embedding, dtype)


def denoising_losses(
    frozen: Frozen,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    ids: torch.Tensor,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Squared error of the UNet's prediction, one number a sample.

    Args:
        frozen: the networks.
        latents: float32 [batch, c, h, w], scaled.
        noise: float32 of the same shape.
        timesteps: int64 [batch].
        ids: int64 [batch, tokens].
        snr_gamma: gamma of min-SNR weights, or None for none.

    Returns:
        float32 [batch].
    """
    scheduler = frozen.scheduler
    noisy = scheduler.add_noise(latents, noise, timesteps)
    # made again for the backward pass: 1 % more products, where it would hold its activations beside the UNet's
    hidden = checkpoint(lambda: frozen.text_encoder(ids).last_hidden_state, use_reentrant=False)
    predicted = frozen.unet(noisy.to(frozen.dtype, memory_format=torch.channels_last), timesteps, hidden).sample.float()
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
    losses: torch.Tensor = (predicted - target).square().mean(dim=(1, 2, 3))
    if snr_gamma is None:
        return losses
    alphas = scheduler.alphas_cumprod[timesteps]
    snr: torch.Tensor = alphas / (1 - alphas)
    # what is weighed is the error of the clean latents; in units of the prediction that is SNR, or SNR + 1
    return losses * snr.clamp(max=snr_gamma) / (snr + 1 if is_velocity else snr)
