"""The networks of the embedded model, untrained, and its noise schedule."""

from typing import Any

from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from toyworld.tokenizer import MAX_TOKENS

SIDE, LATENT_CHANNELS, TEXT_WIDTH = 64, 4, 128
"""Pixels of an image's side, channels of the latents, hidden size of the text encoder."""
XL_TEXT_WIDTHS = (48, 80)
"""Hidden sizes of both text encoders in the layout of Stable Diffusion XL: a sixteenth of its own."""
_SIZE_WIDTH = 32
"""Width of the embedding of one number of a picture's size and crop."""


def make_vae() -> AutoencoderKL:
    """About 0.8 million parameters."""
    return AutoencoderKL(
        sample_size=SIDE,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 24, 48, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    )


_UNET: dict[str, Any] = {
    "sample_size": SIDE // 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}


def make_unet() -> UNet2DConditionModel:
    """In the layout of Stable Diffusion 1.5, 3.5 million parameters."""
    return UNet2DConditionModel(**_UNET, block_out_channels=(64, 112), cross_attention_dim=TEXT_WIDTH)


def make_xl_unet() -> UNet2DConditionModel:
    """In the layout of Stable Diffusion XL, 2.4 million parameters."""
    return UNet2DConditionModel(
        **_UNET,
        block_out_channels=(48, 80),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=sum(XL_TEXT_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=_SIZE_WIDTH,
        projection_class_embeddings_input_dim=6 * _SIZE_WIDTH + XL_TEXT_WIDTHS[1],
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """0.6 million parameters."""
    return CLIPTextModel(_text_config(tokenizer, TEXT_WIDTH, num_hidden_layers=3, hidden_act="quick_gelu"))


def make_xl_text_encoder(tokenizer: CLIPTokenizer, number: int) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Number 1 or 2 of Stable Diffusion XL's text encoders; the last layer of the first is not used."""
    width = XL_TEXT_WIDTHS[number - 1]
    if number == 1:
        return CLIPTextModel(_text_config(tokenizer, width, num_hidden_layers=4, hidden_act="quick_gelu"))
    return CLIPTextModelWithProjection(_text_config(tokenizer, width, num_hidden_layers=4, hidden_act="gelu"))


def make_scheduler() -> PNDMScheduler:
    """Stable Diffusion 1.5's own noise schedule."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        num_train_timesteps=1000,
    )


def make_xl_scheduler() -> EulerDiscreteScheduler:
    """The noise schedule of Stable Diffusion XL."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        num_train_timesteps=1000,
    )
