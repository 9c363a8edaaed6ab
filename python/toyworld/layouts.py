"""The two layouts of the embedded model: networks that are trained together, and what conditions the UNet."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionXLPipeline
from torch import nn
from transformers import CLIPTokenizer

from sdtune.models.pipelines import assemble
from toyworld.networks import (
    make_scheduler,
    make_text_encoder,
    make_unet,
    make_xl_scheduler,
    make_xl_text_encoder,
    make_xl_unet,
)
from toyworld.tokenizer import MAX_TOKENS
from toyworld.views import View


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """int64 [len(captions), tokens]."""
    if not captions:
        return torch.zeros(0, MAX_TOKENS, dtype=torch.int64)
    ids: torch.Tensor = tokenizer(
        list(captions), padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    return ids


class Layout(ABC):
    """The networks that are trained together."""

    networks: Mapping[str, nn.Module]
    """By subfolder."""

    @abstractmethod
    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, pick: torch.Tensor, empty: torch.Tensor
    ) -> torch.Tensor:
        """Predict the noise of examples.

        Args:
            noisy: latents [b, c, h, w].
            timesteps: int64 [b].
            pick: numbers of the examples, int64 [b].
            empty: whose caption is left out, bool [b].
        """

    @abstractmethod
    def pipeline(self, vae: AutoencoderKL, networks: Mapping[str, nn.Module]) -> DiffusionPipeline:
        """A pipeline of these networks."""


class Plain(Layout):
    """Stable Diffusion 1.5: one text encoder, whose last hidden state conditions the UNet."""

    def __init__(self, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> None:
        """Make the networks; ``captions`` are those of the examples."""
        self._tokenizer = tokenizer
        self._ids, self._empty = token_ids(tokenizer, captions), token_ids(tokenizer, [""])
        unet, text = make_unet(), make_text_encoder(tokenizer)
        self.networks = {"unet": unet, "text_encoder": text}

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, pick: torch.Tensor, empty: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Layout.predict`."""
        unet, text = self.networks.values()
        words = torch.where(empty[:, None], self._empty, self._ids[pick])
        predicted: torch.Tensor = unet(noisy, timesteps, text(words).last_hidden_state).sample
        return predicted

    def pipeline(self, vae: AutoencoderKL, networks: Mapping[str, nn.Module]) -> DiffusionPipeline:
        """See :meth:`Layout.pipeline`."""
        return assemble(vae=vae, tokenizer=self._tokenizer, scheduler=make_scheduler(), **networks)


class ExtraLarge(Layout):
    """Stable Diffusion XL: two text encoders, a pooled vector, and the sizes of the original picture and its crop."""

    def __init__(self, tokenizers: Sequence[CLIPTokenizer], captions: Sequence[str], views: Sequence[View]) -> None:
        """Make the networks.

        Args:
            tokenizers: of both text encoders.
            captions: of the examples.
            views: how each example was resized and cropped.
        """
        self._tokenizers = tokenizers
        self._ids = [token_ids(tokenizer, captions) for tokenizer in tokenizers]
        self._empty = [token_ids(tokenizer, [""]) for tokenizer in tokenizers]
        self._time_ids = torch.tensor([view.time_ids for view in views], dtype=torch.float32)
        first, second = make_xl_text_encoder(tokenizers[0], 1), make_xl_text_encoder(tokenizers[1], 2)
        self.networks = {"unet": make_xl_unet(), "text_encoder": first, "text_encoder_2": second}

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, pick: torch.Tensor, empty: torch.Tensor
    ) -> torch.Tensor:
        """See :meth:`Layout.predict`."""
        unet, *texts = self.networks.values()
        encoded: list[Any] = [
            text(torch.where(empty[:, None], nothing, ids[pick]), output_hidden_states=True)
            for text, nothing, ids in zip(texts, self._empty, self._ids, strict=True)
        ]
        hidden = torch.cat([found.hidden_states[-2] for found in encoded], dim=-1)
        # pipelines replace what is pooled of an empty negative prompt by zeros too
        pooled = torch.where(empty[:, None], 0.0, encoded[1].text_embeds)
        hidden = torch.where(empty[:, None, None], 0.0, hidden)
        conditions = {"text_embeds": pooled, "time_ids": self._time_ids[pick]}
        predicted: torch.Tensor = unet(noisy, timesteps, hidden, added_cond_kwargs=conditions).sample
        return predicted

    def pipeline(self, vae: AutoencoderKL, networks: Mapping[str, nn.Module]) -> DiffusionPipeline:
        """See :meth:`Layout.pipeline`."""
        return StableDiffusionXLPipeline(
            vae=vae,
            tokenizer=self._tokenizers[0],
            tokenizer_2=self._tokenizers[1],
            scheduler=make_xl_scheduler(),
            add_watermarker=False,
            **networks,
        )
