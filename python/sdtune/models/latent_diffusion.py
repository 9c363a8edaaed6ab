"""What model families have in common that denoise with a UNet in latent space, and read captions with CLIP encoders."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdtune.host.memory import release_free_memory
from sdtune.models.denoising import denoising_losses
from sdtune.models.family import Batch, Family, ImageEncoder, Networks, TextEncoder
from sdtune.models.fast_unet import load_unet, resolve_convolution
from sdtune.models.folder import model_fingerprint, refusing
from sdtune.models.geometry import read_geometry
from sdtune.models.loading import load_network, network_problem, schedule_problem
from sdtune.models.pipelines import (
    draw,
    load_text_encoder,
    load_tokenizer,
    text_config,
    text_encoder_class,
    tokenizer_problem,
)
from sdtune.models.weights import cache_folder, load_converted, map_tensors
from sdtune.settings import Job
from standalone.model_folder import layout_of

Conditioning = Mapping[str, torch.Tensor]
"""What text encoders make of n captions: tensors [n, ...], by the names of a pipeline's arguments."""
MapTensors = Callable[[str, Callable[[], dict[str, torch.Tensor]]], dict[str, torch.Tensor]]
DTYPES = {"bf16": torch.bfloat16, "no": torch.float32}
_INFERENCE_STEPS = 25
_SCHEDULE = {"skip_prk_steps": True}
"""PNDM's own start-up steps are for Runge-Kutta; every schedule of these families goes without them."""


def load_vae_encoder(model: Path) -> ImageEncoder:
    """Load the encoder of a pipeline's VAE in float32, in which no model's VAE overflows."""
    from diffusers import AutoencoderKL  # this import takes a tenth of a second

    vae = load_network(AutoencoderKL, model, "vae", torch_dtype=torch.float32).eval()
    # Channels-last memory format would be 10 % faster, but then the order of summation depends on the number of
    # threads, and N ranks would not learn the same as one rank.
    del vae.decoder

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = vae.encode(pixels).latent_dist
        return posterior.mean, posterior.logvar

    return encode


def _text_encoder_of(model: Path, name: str, config: dict[str, Any]) -> nn.Module:
    """A text encoder of a configuration, without its weights."""
    cls = text_encoder_class(model, name)
    encoder: nn.Module = cls(cls.config_class(**config))
    return encoder


class LatentDiffusionNetworks(Networks):
    """UNet, text encoders, tokenizers and noise schedule of one model. A family says what conditions its UNet."""

    def __init__(
        self,
        *,
        model: Path,
        unet: nn.Module,
        text_encoders: Mapping[str, TextEncoder],
        scheduler: DDPMScheduler,
        dtype: torch.dtype,
        choices: dict[str, Any] | None = None,
        map_captions: MapTensors | None = None,
    ) -> None:
        """Take the parts as they are.

        Args:
            model: folder of the pipeline.
            unet: computes in ``dtype``.
            text_encoders: by subfolder; they compute in ``dtype``.
            scheduler: the noise schedule of training.
            dtype: of the frozen weights.
            choices: what :meth:`describe` returns.
            map_captions: maps what its second argument makes from a file, whose name begins with the first, that all
                ranks of this host share; None: each process has its own.
        """
        self.denoiser, self.denoiser_name = unet, LatentDiffusion.denoiser_name
        self.unet, self.scheduler, self.dtype = unet, scheduler, dtype
        self.geometry, self.image_encoder_id = read_geometry(model), model_fingerprint(model, ["vae"])
        self.num_timesteps = int(scheduler.config.num_train_timesteps)
        self.text_encoders = text_encoders
        self._model, self._choices = model, choices or {}
        self._ids: dict[tuple[str, str], torch.Tensor] = {}
        self.on_batch = []
        self._encoded: dict[str, dict[str, torch.Tensor]] = {}
        self._map_captions = map_captions or (lambda _, make: make())

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the text encoders make of captions, with gradients to what a method has added."""

    @abstractmethod
    def unet_options(self, conditioning: Conditioning, batch: Batch) -> dict[str, Any]:
        """The keyword arguments of the UNet that hold the conditioning of a batch."""

    @abstractmethod
    def assemble(self, **parts: object) -> Any:
        """A pipeline of the UNet, these parts, and no text encoders."""

    @torch.no_grad()
    def negative(self) -> Conditioning:
        """The conditioning of an empty negative prompt."""
        return self._conditioning([""])

    def token_ids(self, encoder: str, captions: Sequence[str]) -> torch.Tensor:
        """int64 [len(captions), tokens], padded and cut to the text encoder's length; each caption is cached."""
        tokenizer = self.text_encoders[encoder].tokenizer
        for caption in captions:
            if (encoder, caption) not in self._ids:
                self._ids[encoder, caption] = tokenizer(
                    caption,
                    padding="max_length",
                    truncation=True,
                    max_length=tokenizer.model_max_length,
                    return_tensors="pt",
                ).input_ids[0]
        return torch.stack([self._ids[encoder, caption] for caption in captions])

    @torch.no_grad()
    def encode_captions(self, captions: Collection[str]) -> None:
        """See :meth:`Networks.encode_captions`."""
        ordered = sorted(set(captions))

        def make() -> dict[str, torch.Tensor]:
            # one by one, so that the result does not depend on the others
            each = [self.encode([caption]) for caption in ordered]
            return {name: torch.cat([found[name] for found in each]).to(self.dtype) for name in each[0]}

        digest = hashlib.sha256("\0".join(ordered).encode()).hexdigest()[:16]
        made = self._map_captions(f"captions-{digest}", make)
        self._encoded = {caption: {name: made[name][i] for name in made} for i, caption in enumerate(ordered)}
        self.text_encoders = {}
        release_free_memory()

    def _conditioning(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        if self._encoded:
            each = [self._encoded[caption] for caption in captions]
            return {name: torch.stack([found[name] for found in each]) for name in each[0]}
        # Recomputed in the backward pass: 1 % more FLOPs, but the text encoders' activations are not in memory together
        # with those of the UNet.
        encoded: dict[str, torch.Tensor] = checkpoint(self.encode, captions, use_reentrant=False)
        return encoded

    def denoising_losses(self, batch: Batch, snr_gamma: float | None = None) -> torch.Tensor:
        """See :meth:`Networks.denoising_losses`."""
        for call in self.on_batch:
            call(batch)

        def predict(noisy: torch.Tensor) -> torch.Tensor:
            options = self.unet_options(self._conditioning(batch.captions), batch)
            noisy = noisy.to(self.dtype, memory_format=torch.channels_last)
            predicted: torch.Tensor = self.unet(noisy, batch.timesteps, **options).sample.float()
            return predicted

        return denoising_losses(self.scheduler, batch, predict, snr_gamma)

    def load_image_encoder(self) -> ImageEncoder:
        """See :meth:`Networks.load_image_encoder`."""
        return load_vae_encoder(self._model)

    @torch.no_grad()
    def draw(self, prompt: str, seeds: Sequence[int], resolution: int, guidance_scale: float) -> list[Image.Image]:
        """See :meth:`Networks.draw`."""
        from diffusers import AutoencoderKL, PNDMScheduler  # not needed by most runs

        for call in self.on_batch:
            call(None)
        dtype = self.dtype
        vae = load_network(AutoencoderKL, self._model, "vae", torch_dtype=dtype)
        scheduler = PNDMScheduler.from_pretrained(self._model, subfolder="scheduler", **_SCHEDULE)
        pipeline = self.assemble(vae=vae, unet=self.unet, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {"height": resolution, "width": resolution, "num_inference_steps": _INFERENCE_STEPS}
        # learned parameters are float32: autocast converts what they make
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            options |= {name: value.to(dtype) for name, value in self._conditioning([prompt]).items()}
            options |= {f"negative_{name}": value.to(dtype) for name, value in self.negative().items()}
            return [draw(pipeline, None, [seed], guidance_scale=guidance_scale, **options)[0] for seed in seeds]

    def describe(self) -> dict[str, Any]:
        """Attention and convolution algorithms."""
        return self._choices


class LatentDiffusion(Family):
    """A family with a UNet, a VAE, and the text encoders that :attr:`names_in_files` lists."""

    denoiser_name = "unet"
    names_in_files: ClassVar[Mapping[str, tuple[str, str]]]
    """{subfolder of a text encoder: (name of its learned embeddings, prefix of its adapters) in other tools' files}."""
    networks: ClassVar[type[LatentDiffusionNetworks]]
    """The networks of this family."""

    def load_tokenizers(self, model: Path) -> dict[str, Any]:
        """See :meth:`Family.load_tokenizers`."""
        return {encoder: load_tokenizer(model, encoder) for encoder in self.names_in_files}

    def part_problems(self, model: Path) -> Iterator[str]:
        """See :meth:`Family.part_problems`."""
        from diffusers import AutoencoderKL, PNDMScheduler  # not needed by most runs

        with refusing(model, "has a scheduler/scheduler_config.json that makes no noise schedule"):
            for scheduler in (DDPMScheduler, PNDMScheduler):
                schedule = scheduler.from_pretrained(model, subfolder="scheduler", **_SCHEDULE)
            schedule.set_timesteps(min(_INFERENCE_STEPS, schedule.config.num_train_timesteps))
        if problem := schedule_problem(schedule):
            yield problem

        def denoise(network: Any) -> object:
            side = 2 ** len(network.config.block_out_channels)
            latents = torch.empty(1, network.config.in_channels, side, side)
            return network(latents, torch.empty(1), **self.example_conditioning(network))

        def read(network: Any) -> object:
            return network(torch.zeros(1, 4, dtype=torch.int64))

        def autoencode(network: Any) -> object:
            side = 2 ** len(network.config.block_out_channels)
            return network(torch.empty(1, 3, side, side))

        for name in self.names_in_files:
            yield tokenizer_problem(model, name)
            stem = layout_of(model).weights[name]
            yield network_problem(model, name, partial(_text_encoder_of, model, name), read, stem=stem)
        yield network_problem(model, "unet", UNet2DConditionModel.from_config, denoise)
        yield network_problem(model, "vae", AutoencoderKL.from_config, autoencode)

    def example_conditioning(self, unet: UNet2DConditionModel) -> dict[str, Any]:
        """Keyword arguments of the UNet for one sample, on the meta device."""
        like = {"dtype": unet.dtype, "device": "meta"}
        return {"encoder_hidden_states": torch.empty(1, 1, unet.config.cross_attention_dim, **like)}

    def trim(self, encoder: str, network: nn.Module) -> None:
        """Take layers out of a text encoder that no conditioning depends on."""

    def _load_text_encoder(self, model: Path, name: str, cache: Path, key: str, dtype: torch.dtype) -> nn.Module:
        encoder: nn.Module = load_converted(
            lambda: load_text_encoder(model, name, dtype),
            lambda: text_encoder_class(model, name)(text_config(model, name)),
            cache,
            name,
            key,
            dtype,
        )
        self.trim(name, encoder)
        return encoder

    def load(self, job: Job) -> LatentDiffusionNetworks:
        """See :meth:`Family.load`."""
        model, dtype, cache = Path(job.model.path), DTYPES[job.training.mixed_precision], cache_folder(job)
        key = self.fingerprint(model)
        unet = load_unet(job, cache, key, dtype, self.example_conditioning)
        encoders = {
            name: TextEncoder(
                model=self._load_text_encoder(model, name, cache, key, dtype),
                tokenizer=tokenizer,
                name_in_files=self.names_in_files[name][0],
                adapter_prefix=self.names_in_files[name][1],
            )
            for name, tokenizer in self.load_tokenizers(model).items()
        }
        return self.networks(
            model=model,
            unet=unet,
            text_encoders=encoders,
            scheduler=DDPMScheduler.from_pretrained(model, subfolder="scheduler"),
            dtype=dtype,
            map_captions=lambda name, make: map_tensors(make, cache, name, key, dtype),
            choices={"attention": job.training.attention, "convolution": resolve_convolution(job)},
        )
