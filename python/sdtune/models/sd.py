"""Model family ``sd``: Stable Diffusion 1.x and 2.x, one CLIP text encoder and a UNet in latent space."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

from sdtune.errors import BadInput
from sdtune.host.memory import release_free_memory
from sdtune.host.processor import instruction_set
from sdtune.models.denoising import denoising_losses
from sdtune.models.family import Batch, Family, ImageEncoder, Networks, TextEncoder
from sdtune.models.folder import model_fingerprint, read_config
from sdtune.models.geometry import Geometry, read_geometry
from sdtune.models.pipelines import assemble, draw
from sdtune.models.weights import cache_folder, load_converted, map_tensors
from sdtune.ops.unet import optimize_unet
from sdtune.settings import Job

MapTensors = Callable[[str, Callable[[], dict[str, torch.Tensor]]], dict[str, torch.Tensor]]
DTYPES = {"bf16": torch.bfloat16, "no": torch.float32}
_INFERENCE_STEPS = 25


def optimize_with_ipex(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """Optimize ``unet`` with Intel Extension for PyTorch. Its weights stay memory-mapped, shared by all ranks.

    The extension's packed weights would be private to each rank and need the memory twice. Our convolutions use
    transformed filters anyway.

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
    ipex.disable_auto_channels_last()  # it would copy the weights, which are channels-last already
    optimized: UNet2DConditionModel = ipex.optimize(unet, dtype=dtype, inplace=True, weights_prepack=False)
    return optimized


def resolve_convolution(job: Job) -> Literal["winograd", "direct"]:
    """The job's convolution algorithm, with ``auto`` resolved for this host."""
    asked = job.training.convolution
    if asked != "auto":
        return asked
    # with a matrix unit (AMX), Winograd's transforms cost more than the multiplications they save
    return "direct" if job.training.mixed_precision == "bf16" and instruction_set() == "AMX" else "winograd"


def _use_fast_operations(unet: UNet2DConditionModel, job: Job, geometry: Geometry, cache: Path, key: str) -> None:
    """Replace operations of the frozen ``unet`` by faster ones. ``key`` is the fingerprint of the model."""
    side = geometry.latent_side(job.data.resolution)
    like = {"dtype": unet.dtype, "device": "meta"}
    optimize_unet(
        unet,
        example_inputs={
            "sample": torch.empty(1, unet.config.in_channels, side, side, **like),
            "timestep": torch.empty(1, device="meta"),
            "encoder_hidden_states": torch.empty(1, 1, unet.config.cross_attention_dim, **like),
        },
        attention=job.training.attention,
        convolution=resolve_convolution(job),
        map_tensors=lambda make: map_tensors(make, cache, f"unet-winograd-{side}", key, unet.dtype),
    )


def load_vae_encoder(model: Path) -> ImageEncoder:
    """Load the encoder of a pipeline's VAE in float32."""
    from diffusers import AutoencoderKL  # this import takes a tenth of a second

    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True).eval()
    # Channels-last memory format would be 10 % faster, but then the order of summation depends on the number of
    # threads, and N ranks would not learn the same as one rank.
    del vae.decoder

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = vae.encode(pixels).latent_dist
        return posterior.mean, posterior.logvar

    return encode


class StableDiffusionNetworks(Networks):
    """UNet, text encoder, tokenizer and noise schedule of one model."""

    def __init__(
        self,
        *,
        model: Path,
        unet: torch.nn.Module,
        text_encoder: torch.nn.Module,
        tokenizer: CLIPTokenizerFast,
        scheduler: DDPMScheduler,
        dtype: torch.dtype,
        choices: dict[str, Any] | None = None,
        map_captions: MapTensors | None = None,
    ) -> None:
        """Take the parts as they are.

        Args:
            model: folder of the pipeline.
            unet: computes in ``dtype``.
            text_encoder: its last hidden state is the conditioning; computes in ``dtype``.
            tokenizer: of ``text_encoder``.
            scheduler: the noise schedule of training.
            dtype: of the frozen weights.
            choices: what :meth:`describe` returns.
            map_captions: maps what its second argument makes from a file, whose name begins with the first, that all
                ranks of this host share; None: each process has its own.
        """
        self.denoiser, self.denoiser_name = unet, StableDiffusion.denoiser_name
        self.unet, self.tokenizer, self.scheduler = unet, tokenizer, scheduler
        self.text_encoder: torch.nn.Module | None = text_encoder
        self.dtype = dtype
        self.geometry, self.image_encoder_id = read_geometry(model), model_fingerprint(model, ["vae"])
        self.num_timesteps = int(scheduler.config.num_train_timesteps)
        self.text_encoders = {"text_encoder": TextEncoder(model=text_encoder, tokenizer=tokenizer)}
        self._model, self._choices = model, choices or {}
        self._ids: dict[str, torch.Tensor] = {}
        self.on_batch = []
        self._encoded: dict[str, torch.Tensor] = {}
        self._map_captions = map_captions or (lambda _, make: make())

    def token_ids(self, captions: Sequence[str]) -> torch.Tensor:
        """int64 [len(captions), tokens], padded and cut to the text encoder's length; each caption is cached."""
        for caption in captions:
            if caption not in self._ids:
                self._ids[caption] = self.tokenizer(
                    caption,
                    padding="max_length",
                    truncation=True,
                    max_length=self.tokenizer.model_max_length,
                    return_tensors="pt",
                ).input_ids[0]
        return torch.stack([self._ids[caption] for caption in captions])

    @torch.no_grad()
    def encode_captions(self, captions: Collection[str]) -> None:
        """See :meth:`Networks.encode_captions`."""
        ordered, encoder = sorted(set(captions)), self.text_encoder
        assert encoder is not None

        def make() -> dict[str, torch.Tensor]:
            # one by one, so that the result does not depend on the others
            hidden = [encoder(self.token_ids([caption])).last_hidden_state for caption in ordered]
            return {"hidden": torch.cat(hidden).to(self.dtype)}

        digest = hashlib.sha256("\0".join(ordered).encode()).hexdigest()[:16]
        self._encoded = dict(zip(ordered, self._map_captions(f"captions-{digest}", make)["hidden"], strict=True))
        self.text_encoder, self.text_encoders = None, {}
        release_free_memory()

    def _hidden(self, captions: Sequence[str]) -> torch.Tensor:
        """The conditioning [len(captions), tokens, dim]."""
        if self._encoded:
            return torch.stack([self._encoded[caption] for caption in captions])
        ids, encoder = self.token_ids(captions), self.text_encoder
        assert encoder is not None
        # Recomputed in the backward pass: 1 % more FLOPs, but the text encoder's activations are not in memory together
        # with those of the UNet.
        hidden: torch.Tensor = checkpoint(lambda: encoder(ids).last_hidden_state, use_reentrant=False)
        return hidden

    def denoising_losses(self, batch: Batch, snr_gamma: float | None = None) -> torch.Tensor:
        """See :meth:`Networks.denoising_losses`."""
        for call in self.on_batch:
            call(batch)

        def predict(noisy: torch.Tensor) -> torch.Tensor:
            hidden = self._hidden(batch.captions)
            noisy = noisy.to(self.dtype, memory_format=torch.channels_last)
            predicted: torch.Tensor = self.unet(noisy, batch.timesteps, hidden).sample.float()
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
        vae = AutoencoderKL.from_pretrained(self._model, subfolder="vae", torch_dtype=dtype, use_safetensors=True)
        scheduler = PNDMScheduler.from_pretrained(self._model, subfolder="scheduler")
        pipeline = assemble(
            vae=vae, unet=self.unet, text_encoder=self.text_encoder, tokenizer=self.tokenizer, scheduler=scheduler
        )
        pipeline.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {"height": resolution, "width": resolution, "num_inference_steps": _INFERENCE_STEPS}
        # A float32 parameter in the text encoder makes the pipeline take it for a float32 model and give the bf16 UNet
        # float32 latents; autocast converts them.
        prompts: list[str] | None = [prompt]
        if self._encoded:
            prompts = None
            options |= {"prompt_embeds": self._hidden([prompt]), "negative_prompt_embeds": self._hidden([""])}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return [draw(pipeline, prompts, [seed], guidance_scale=guidance_scale, **options)[0] for seed in seeds]

    def describe(self) -> dict[str, Any]:
        """Attention and convolution algorithms."""
        return self._choices


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x."""

    name = "sd"
    pipeline_classes = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    denoiser_name = "unet"
    weight_parts = ("unet", "vae", "text_encoder")
    other_parts = ("tokenizer", "scheduler")

    def load_tokenizers(self, model: Path) -> dict[str, Any]:
        """See :meth:`Family.load_tokenizers`."""
        tokenizer = CLIPTokenizerFast.from_pretrained(model, subfolder="tokenizer")
        # a tokenizer that does not know it says 10^30
        reads = read_config(model / "text_encoder" / "config.json").get("max_position_embeddings", 77)
        tokenizer.model_max_length = min(tokenizer.model_max_length, reads)
        return {"text_encoder": tokenizer}

    def load(self, job: Job) -> StableDiffusionNetworks:
        """See :meth:`Family.load`."""
        model, dtype, cache = Path(job.model.path), DTYPES[job.training.mixed_precision], cache_folder(job)
        key = self.fingerprint(model)
        text_encoder = load_converted(
            lambda: CLIPTextModel.from_pretrained(model, subfolder="text_encoder", dtype=dtype, use_safetensors=True),
            lambda: CLIPTextModel(CLIPTextConfig.from_pretrained(model, subfolder="text_encoder")),
            cache,
            "text_encoder",
            key,
            dtype,
        )
        unet = load_converted(
            lambda: UNet2DConditionModel.from_pretrained(
                model, subfolder="unet", torch_dtype=dtype, use_safetensors=True
            ),
            lambda: UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model, subfolder="unet")),
            cache,
            "unet",
            key,
            dtype,
        )
        _use_fast_operations(unet, job, self.geometry(model), cache, key)
        if job.software_stack == "ipex":
            unet = optimize_with_ipex(unet, dtype)
        return StableDiffusionNetworks(
            model=model,
            unet=unet,
            text_encoder=text_encoder,
            tokenizer=self.load_tokenizers(model)["text_encoder"],
            scheduler=DDPMScheduler.from_pretrained(model, subfolder="scheduler"),
            dtype=dtype,
            map_captions=lambda name, make: map_tensors(make, cache, name, key, dtype),
            choices={"attention": job.training.attention, "convolution": resolve_convolution(job)},
        )
