"""Model family ``sdxl``: Stable Diffusion XL, two CLIP text encoders and a UNet that knows the sizes of pictures."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdtune.models.family import Batch
from sdtune.models.folder import read_config
from sdtune.models.latent_diffusion import Conditioning, LatentDiffusion, LatentDiffusionNetworks


class StableDiffusionXLNetworks(LatentDiffusionNetworks):
    """The penultimate hidden states of both encoders side by side, and what the second one pools."""

    kind_in_files = "sdxl_base_v1-0"

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """See :meth:`LatentDiffusionNetworks.encode`. An empty caption is all zeros if the pipeline says so."""
        first, second = (
            encoder.model(self.token_ids(name, captions), output_hidden_states=True)
            for name, encoder in self.text_encoders.items()
        )
        # the last layer of the first encoder is left out, see trim()
        hidden = torch.cat([first.hidden_states[-1], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if self._zeros_for_empty:
            # a product, so that captions without words have a gradient too, of 0
            said = torch.tensor([float(caption != "") for caption in captions], dtype=hidden.dtype)
            hidden, pooled = hidden * said[:, None, None], pooled * said[:, None]
        return {"prompt_embeds": hidden, "pooled_prompt_embeds": pooled}

    @property
    def _zeros_for_empty(self) -> bool:
        return bool(read_config(self._model / "model_index.json").get("force_zeros_for_empty_prompt", True))

    def unet_options(self, conditioning: Conditioning, batch: Batch) -> dict[str, Any]:
        """See :meth:`LatentDiffusionNetworks.unet_options`."""
        time_ids = torch.tensor([[*view.original, *view.crop, *view.target] for view in batch.views])
        return {
            "encoder_hidden_states": conditioning["prompt_embeds"],
            "added_cond_kwargs": {
                "text_embeds": conditioning["pooled_prompt_embeds"],
                "time_ids": time_ids.float(),  # bf16 has no odd numbers above 256
            },
        }

    def assemble(self, **parts: object) -> Any:
        """See :meth:`LatentDiffusionNetworks.assemble`."""
        from diffusers import StableDiffusionXLPipeline  # a slow import that most runs do not need

        missing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        return StableDiffusionXLPipeline(**missing, **parts, add_watermarker=False)


class StableDiffusionXL(LatentDiffusion):
    """Stable Diffusion XL, without the refiner."""

    name = "sdxl"
    pipeline_classes = ("StableDiffusionXLPipeline",)
    weight_parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    other_parts = ("tokenizer", "tokenizer_2", "scheduler")
    names_in_files = {  # noqa: RUF012
        "text_encoder": ("clip_l", "lora_te1"),
        "text_encoder_2": ("clip_g", "lora_te2"),
    }
    networks = StableDiffusionXLNetworks

    def example_conditioning(self, unet: UNet2DConditionModel) -> dict[str, Any]:
        """See :meth:`LatentDiffusion.example_conditioning`."""
        config = unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {
            "text_embeds": torch.empty(1, pooled, dtype=unet.dtype, device="meta"),
            "time_ids": torch.empty(1, 6, device="meta"),
        }
        return super().example_conditioning(unet) | {"added_cond_kwargs": added}

    def trim(self, encoder: str, network: nn.Module) -> None:
        """See :meth:`LatentDiffusion.trim`: of the first encoder only the penultimate hidden state is used."""
        if encoder == "text_encoder":
            layers = next(module for module in network.modules() if isinstance(module, nn.ModuleList))
            del layers[-1]
