"""The denoising loss of latent diffusion models: noise schedule, prediction target, min-SNR weights."""

from collections.abc import Callable
from typing import Any

import torch

from sdtune.models.family import Batch


def denoising_losses(
    scheduler: Any, batch: Batch, predict: Callable[[torch.Tensor], torch.Tensor], snr_gamma: float | None
) -> torch.Tensor:
    """Mean squared error of a network's prediction for each sample.

    Args:
        scheduler: a ``DDPMScheduler`` of diffusers; its ``prediction_type`` is one of
            :data:`standalone.model_folder.PREDICTION_TYPES`.
        batch: b samples.
        predict: noisy latents [b, c, h, w] -> prediction of the same shape, both float32.
        snr_gamma: gamma of min-SNR weights (Hang et al., arXiv 2303.09556); None for no weights.

    Returns:
        float32 [b].
    """
    timesteps = batch.timesteps
    predicted = predict(scheduler.add_noise(batch.latents, batch.noise, timesteps))
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(batch.latents, batch.noise, timesteps) if is_velocity else batch.noise
    losses: torch.Tensor = (predicted - target).square().mean(dim=(1, 2, 3))
    if snr_gamma is None:
        return losses
    alphas = scheduler.alphas_cumprod[timesteps]
    snr: torch.Tensor = alphas / (1 - alphas)
    # The weights are defined for the error of the clean latents. In units of the prediction that error is multiplied by
    # SNR (epsilon) or by SNR + 1 (velocity).
    return losses * snr.clamp(max=snr_gamma) / (snr + 1 if is_velocity else snr)
