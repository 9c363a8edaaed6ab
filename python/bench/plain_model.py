"""What the plain loops load of a pipeline in the layout of Stable Diffusion 1.5 or XL, and how its UNet is called."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TEMPLATES = [
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}", "a photo of my {}",
    "a close-up photo of a {}", "a bright photo of the {}", "a photo of one {}", "a good photo of the {}",
]  # fmt: skip


class Pictures(Dataset):
    """Reads an item from disk, scales it, and mirrors it at random, each time it is requested."""

    def __init__(
        self,
        folder: Path,
        tokenizers: Sequence[CLIPTokenizer],
        placeholder: str,
        resolution: int,
        repeats: int = 100,
    ) -> None:
        self.files = [p for p in folder.iterdir() if not p.name.startswith(".")]
        self.tokenizers, self.placeholder = tokenizers, placeholder
        self.resolution, self.repeats = resolution, repeats

    def __len__(self) -> int:
        return len(self.files) * self.repeats

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image = Image.open(self.files[i % len(self.files)]).convert("RGB")
        image = image.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy((np.array(image) / 127.5 - 1.0).astype(np.float32)).permute(2, 0, 1)
        return {"pixels": pixels, "ids": token_ids(self.tokenizers, random.choice(TEMPLATES).format(self.placeholder))}


def token_ids(tokenizers: Sequence[CLIPTokenizer], text: str) -> torch.Tensor:
    """int64 [text encoders, tokens]."""
    return torch.cat(
        [
            tokenizer(
                text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
            ).input_ids
            for tokenizer in tokenizers
        ]
    )


class PlainModel:
    """The networks of a pipeline, loaded in float32 as diffusers' scripts do."""

    def __init__(self, model: Path) -> None:
        self.tokenizers = [CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")]
        self.schedule = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
        as_float32 = {"torch_dtype": torch.float32}
        self.text_encoders: list[Any] = [CLIPTextModel.from_pretrained(model, subfolder="text_encoder", **as_float32)]
        self.is_xl = (model / "text_encoder_2").is_dir()
        if self.is_xl:
            self.tokenizers.append(CLIPTokenizer.from_pretrained(model, subfolder="tokenizer_2"))
            self.text_encoders.append(
                CLIPTextModelWithProjection.from_pretrained(model, subfolder="text_encoder_2", **as_float32)
            )
        self.vae = AutoencoderKL.from_pretrained(model, subfolder="vae", **as_float32)
        self.unet: Any = UNet2DConditionModel.from_pretrained(model, subfolder="unet", **as_float32)
        for network in (self.vae, self.unet, *self.text_encoders):
            network.requires_grad_(False)

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The hidden states that captions [b, text encoders, tokens] become, and of XL what is pooled too."""
        if not self.is_xl:
            return (self.text_encoders[0](ids[:, 0])[0],)
        first, second = (encoder(ids[:, i], output_hidden_states=True) for i, encoder in enumerate(self.text_encoders))
        hidden = [found.hidden_states[-2].to(self.dtype) for found in (first, second)]
        return torch.cat(hidden, dim=-1), second[0]

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents of pictures, in the type of the UNet."""
        latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.sample().detach()
        return (latents * self.vae.config.scaling_factor).to(self.dtype)

    def loss(self, latents: torch.Tensor, encoded: Sequence[torch.Tensor], side: int) -> torch.Tensor:
        """The mean squared error of the predicted noise; ``side`` of the pictures, in pixels."""
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.schedule.config.num_train_timesteps, (len(latents),))
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        options: dict[str, Any] = {}
        if self.is_xl:
            sizes = torch.tensor([[side, side, 0, 0, side, side]]).repeat(len(latents), 1)
            options = {"added_cond_kwargs": {"text_embeds": encoded[1], "time_ids": sizes}}
        predicted = self.unet(noisy, timesteps, encoded[0].to(self.dtype), **options).sample
        return F.mse_loss(predicted.float(), noise.float(), reduction="mean")

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen UNet's weights, whatever wraps it."""
        return next(p.dtype for p in self.unet.parameters() if not p.requires_grad)
