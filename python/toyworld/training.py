"""Training the embedded model: first the VAE, then UNet and text encoders together."""

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler

from toyworld.layouts import Layout
from toyworld.networks import LATENT_CHANNELS, SIDE


class Log:
    """Prints a line and appends it to ``log.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path, self.begun = path, time.time()
        path.open("w").close()

    def __call__(self, **fields: Any) -> None:
        """Write one line."""
        line = json.dumps({"t": round(time.time() - self.begun, 1), **fields})
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(line + "\n")


class Average:
    """Exponential moving average of the weights of modules; the decay warms up."""

    def __init__(self, *modules: torch.nn.Module, decay: float = 0.999) -> None:
        self.modules, self.decay, self.steps = modules, decay, 0
        self.copies = [copy.deepcopy(m).requires_grad_(False).eval() for m in modules]

    @torch.no_grad()
    def update(self) -> None:
        """Include the present weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for module, average in zip(self.modules, self.copies, strict=True):
            for p, q in zip(module.parameters(), average.parameters(), strict=True):
                q.lerp_(p, 1 - decay)


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then half a cosine down to 2 % of the learning rate."""

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def batch_of(pixels: np.ndarray, index: Any) -> torch.Tensor:
    """uint8 [n, side, side, 3] -> float [len(index), 3, side, side] in [-1, 1]."""
    return torch.from_numpy(pixels[index]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def train_vae(
    vae: AutoencoderKL, pixels: np.ndarray, steps: int, batch: int, rng: np.random.Generator, log: Log
) -> AutoencoderKL:
    """Train on pixel errors (L1 and L2), on errors of pixel differences (L1), and on a small Kullback-Leibler term.

    Returns:
        The averaged VAE.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    schedule, average = cosine(optimizer, steps, 100), Average(vae, decay=0.999)
    vae.train()
    for step in range(1, steps + 1):
        x = batch_of(pixels, rng.integers(0, len(pixels), batch))
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (y.diff(dim=-2) - x.diff(dim=-2)).abs().mean()
        error = (y - x).abs().mean()
        kl = posterior.kl().mean() / (LATENT_CHANNELS * (SIDE // 8) ** 2)
        loss = error + 2 * (y - x).square().mean() + 0.5 * edges + 5e-5 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update()
        if step % 100 == 0 or step == steps:
            log(
                part="vae",
                step=step,
                error=round(error.item(), 4),
                edges=round(edges.item(), 4),
                kl=round(kl.item(), 2),
            )
    return average.copies[0]


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [n, 4, 8, 8] of each image's latents."""
    moments = [vae.encode(batch_of(pixels, slice(i, i + 64))).latent_dist for i in range(0, len(pixels), 64)]
    return torch.cat([m.mean for m in moments]), torch.cat([m.std for m in moments])


def train_unet(
    layout: Layout,
    scheduler: DDPMScheduler,
    latents: tuple[torch.Tensor, torch.Tensor],
    steps: int,
    batch: int,
    log: Log,
    save: Callable[[dict[str, torch.nn.Module]], None],
) -> None:
    """Train noise prediction with min-SNR weights (gamma 5); a tenth of the captions is empty, for guidance.

    ``save`` gets the averaged networks by name, every 1,000 steps and at the end.
    """
    mean, std = latents
    modules = list(layout.networks.values())
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule, average = cosine(optimizer, steps, 200), Average(*modules, decay=0.999)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    for module in modules:
        module.train()
    recent: list[float] = []
    for step in range(1, steps + 1):
        pick = torch.randint(len(mean), (batch,))
        x = mean[pick] + std[pick] * torch.randn(batch, *mean.shape[1:])
        t = torch.randint(scheduler.config.num_train_timesteps, (batch,))
        noise = torch.randn_like(x)
        predicted = layout.predict(scheduler.add_noise(x, noise, t), t, pick, torch.rand(batch) < 0.1)
        weight = snr[t].clamp(max=5) / snr[t]
        loss = ((predicted - noise).square().mean(dim=(1, 2, 3)) * weight).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.update()
        recent.append(loss.item())
        if step % 100 == 0 or step == steps:
            log(
                part="unet", step=step, loss=round(sum(recent) / len(recent), 5), lr=round(schedule.get_last_lr()[0], 6)
            )
            recent.clear()
        if step % 1000 == 0 or step == steps:
            save(dict(zip(layout.networks, average.copies, strict=True)))
