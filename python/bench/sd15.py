"""A pipeline with the exact configuration of Stable Diffusion 1.5 and random weights, to measure without a download.

    python bench/sd15.py ~/.cache/sdtune/bench/sd15

About 4.3 GB of float32 safetensors, as on the hub; the images are noise. Widths, depths and heads are those of
``stable-diffusion-v1-5/stable-diffusion-v1-5``. The vocabulary has its size, but only letters and the templates' words
are real: CLIP's own merges would be a download, and no time depends on them.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdtune.data.captions import OBJECT_TEMPLATES, STYLE_TEMPLATES
from sdtune.models.pipelines import assemble
from toyworld import tokenizer as toyworld
from toyworld.networks import make_scheduler

VOCABULARY = 49_408
UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # diffusers' historical name: this is the number of heads
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
"""Configuration of the UNet."""


def make_tokenizer(folder: Path, pad: str = toyworld.END) -> CLIPTokenizer:
    """A tokenizer of CLIP's vocabulary size, filled up with words that no text contains. ``pad`` fills short texts."""
    toyworld.make_tokenizer([*OBJECT_TEMPLATES, *STYLE_TEMPLATES, "toy robot"], folder)
    start, end = toyworld.START, toyworld.END
    words = list(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    words = [w for w in words if w not in (start, end)]
    words += [f"filler{i}</w>" for i in range(VOCABULARY - 2 - len(words))]
    vocab = {word: i for i, word in enumerate([*words, start, end])}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, unk_token=end, bos_token=start, eos_token=end, pad_token=pad, model_max_length=77
    )


def make(folder: Path) -> Path:
    """Write the pipeline to ``folder`` unless it exists; atomically."""
    if (folder / "model_index.json").is_file():
        return folder
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    torch.manual_seed(0)
    tokenizer = make_tokenizer(temporary / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
        )
    )
    unet = UNet2DConditionModel(**UNET)
    vae = AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        scaling_factor=0.18215,
    )
    parts = {"unet": (unet, 859_520_964), "vae": (vae, 83_653_863), "text_encoder": (text_encoder, 123_060_480)}
    for name, (module, parameters) in parts.items():
        if (count := sum(p.numel() for p in module.parameters())) != parameters:
            raise RuntimeError(f"{name} has {count} parameters, but Stable Diffusion 1.5 has {parameters}")
    assemble(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=make_scheduler()
    ).save_pretrained(temporary)
    temporary.replace(folder)
    return folder


def main() -> None:
    """Write the pipeline to the folder on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="receives the pipeline")
    print(make(parser.parse_args().folder))


if __name__ == "__main__":
    main()
