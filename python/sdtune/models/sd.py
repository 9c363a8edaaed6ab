"""Model family ``sd``: Stable Diffusion 1.x and 2.x, one CLIP text encoder and a UNet in latent space."""

from collections.abc import Sequence
from typing import Any

import torch

from sdtune.models.family import Batch
from sdtune.models.folder import read_config
from sdtune.models.latent_diffusion import Conditioning, LatentDiffusion, LatentDiffusionNetworks
from sdtune.models.pipelines import assemble

_WIDTH_OF_2 = 1024  # of what the text encoder of Stable Diffusion 2.x gives the UNet; that of 1.x gives 768


class StableDiffusionNetworks(LatentDiffusionNetworks):
    """The last hidden state of the text encoder is the conditioning."""

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """See :meth:`LatentDiffusionNetworks.encode`."""
        encoder = self.text_encoders["text_encoder"].model
        return {"prompt_embeds": encoder(self.token_ids("text_encoder", captions)).last_hidden_state}

    def unet_options(self, conditioning: Conditioning, batch: Batch) -> dict[str, Any]:
        """See :meth:`LatentDiffusionNetworks.unet_options`."""
        return {"encoder_hidden_states": conditioning["prompt_embeds"]}

    @property
    def kind_in_files(self) -> str:  # type: ignore[override]
        """See :class:`sdtune.models.family.Networks`."""
        width = read_config(self._model / "unet/config.json")["cross_attention_dim"]
        kind = "sd_v2" if width == _WIDTH_OF_2 else "sd_v1"
        return f"{kind}_v" if self.scheduler.config.prediction_type == "v_prediction" else kind

    def assemble(self, **parts: object) -> Any:
        """See :meth:`LatentDiffusionNetworks.assemble`."""
        return assemble(text_encoder=None, tokenizer=None, **parts)


class StableDiffusion(LatentDiffusion):
    """Stable Diffusion 1.x and 2.x."""

    name = "sd"
    pipeline_classes = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    weight_parts = ("unet", "vae", "text_encoder")
    other_parts = ("tokenizer", "scheduler")
    names_in_files = {"text_encoder": ("emb_params", "lora_te")}  # noqa: RUF012
    networks = StableDiffusionNetworks
