"""A pipeline with the exact configuration of Stable Diffusion XL base 1.0 and random weights.

    python bench/sdxl.py ~/.cache/sdtune/bench/sdxl

6.9 GB of bf16 safetensors; the images are noise. Networks are made on the meta device, and their weights are drawn and
written shard by shard, so that making them takes 3.5 GB of memory. Widths, depths and heads are those of
``stabilityai/stable-diffusion-xl-base-1.0``. The vocabulary has its size, see ``sd15.py``.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from sd15 import VOCABULARY, make_tokenizer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from toyworld.networks import make_xl_scheduler

SHARD_BYTES = 10**9
"""Weights that are in memory, and in one file, at once."""
UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),  # diffusers' historical name: these are numbers of heads, each 64 wide
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
"""Configuration of the UNet."""
VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
"""Configuration of the VAE."""
_TEXT = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 77,
    "bos_token_id": VOCABULARY - 2,
    "eos_token_id": VOCABULARY - 1,
}
TEXT: dict[str, Any] = {
    **_TEXT, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "pad_token_id": VOCABULARY - 1,
}  # fmt: skip
"""Configuration of the first text encoder, CLIP ViT-L."""
TEXT_2: dict[str, Any] = {
    **_TEXT, "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "pad_token_id": 0,
}  # fmt: skip
"""Configuration of the second one, OpenCLIP ViT-bigG."""
PARAMETERS = {
    "unet": 2_567_463_684,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
}
"""Parameters of the networks of Stable Diffusion XL base 1.0."""


def _networks() -> dict[str, tuple[Any, str]]:
    """{subfolder: (network on the meta device, first part of its files' names)}."""
    with init_empty_weights():
        return {
            "unet": (UNet2DConditionModel(**UNET), "diffusion_pytorch_model"),
            "vae": (AutoencoderKL(**VAE), "diffusion_pytorch_model"),
            "text_encoder": (CLIPTextModel(CLIPTextConfig(**TEXT)), "model"),
            "text_encoder_2": (CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2)), "model"),
        }


class _Random:
    """Random weights of the size that torch gives them, so that activations keep theirs: bf16.

    3.5 billion random numbers would take minutes. These are one million, over and over: a prime number of them, so that
    no two rows of a matrix are alike.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._numbers = torch.rand(1_000_003, generator=generator).mul_(2).sub_(1).bfloat16()

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The weights of a tensor, by its name in the network."""
        if len(shape) == 1:
            return torch.full(shape, float(name.endswith("weight")), dtype=torch.bfloat16)  # normalizations; no bias
        is_vocabulary = name.endswith(("token_embedding.weight", "position_embedding.weight"))
        scaled = self._numbers * (0.02 if is_vocabulary else math.prod(shape[1:]) ** -0.5)
        return scaled.repeat(-(-shape.numel() // len(scaled)))[: shape.numel()].view(shape)


def _shards(shapes: Mapping[str, torch.Size]) -> Iterator[list[str]]:
    """Names of tensors, at most :data:`SHARD_BYTES` at a time."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + 2 * shape.numel() > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * shape.numel()
    yield names


def save_random(network: Any, stem: str, folder: Path, random: _Random) -> None:
    """Write a network that is on the meta device: its configuration, and random weights shard by shard."""
    if isinstance(network, nn.Module) and hasattr(network, "save_config"):
        network.save_config(folder)
    else:
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
    # position numbers are a buffer, which transformers makes itself
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    shards = list(_shards(shapes))
    files = [
        f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for file, names in zip(files, shards, strict=True):
        save_file({name: random.tensor(name, shapes[name]) for name in names}, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(2 * shape.numel() for shape in shapes.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def make(folder: Path) -> Path:
    """Write the pipeline to ``folder`` unless it exists; atomically."""
    if (folder / "model_index.json").is_file():
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    random = _Random(seed=0)
    for name, (network, stem) in _networks().items():
        if (count := sum(p.numel() for p in network.parameters())) != PARAMETERS[name]:
            raise RuntimeError(f"{name} has {count} parameters, but Stable Diffusion XL has {PARAMETERS[name]}")
        (temporary / name).mkdir(parents=True)
        save_random(network, stem, temporary / name, random)
    make_xl_scheduler().save_pretrained(temporary / "scheduler")
    make_tokenizer(temporary / "tokenizer").save_pretrained(temporary / "tokenizer")
    make_tokenizer(temporary / "tokenizer_2", pad="!").save_pretrained(temporary / "tokenizer_2")
    index = {
        "_class_name": StableDiffusionXLPipeline.__name__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": True,
    }
    (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder)
    return folder


def main() -> None:
    """Write the pipeline to the folder on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="receives the pipeline")
    print(make(parser.parse_args().folder))


if __name__ == "__main__":
    main()
