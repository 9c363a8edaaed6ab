"""Baseline of the benchmarks: a plain loop that does what diffusers' ``textual_inversion.py`` does.

    python bench/plain_loop.py --model M --pictures P --out O --steps 8 [--resolution 512] [--batch 1] [--ipex]
    mpirun -n 2 python bench/plain_loop.py ...

Like that script, and unlike our engine, it loads all weights in float32 and casts them afterwards; reads, scales and
encodes its pictures at every step; runs AdamW over the whole embedding matrix, and restores the other rows after the
step; all-reduces the gradient of the whole matrix under DDP; and gives all ranks the same seed, so the same noise and
timesteps. With --ipex it optimizes UNet and VAE as the article does. It writes the same ``metrics.jsonl`` as the
engine, so that one program can compare them. It is not part of the product.
"""

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from sdtune.data.captions import caption_templates
from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures
from sdtune.data.posterior_files import PosteriorFiles
from sdtune.host.memory import peak_rss_bytes, reset_peak_rss
from sdtune.models.sd import StableDiffusionNetworks
from sdtune.training.validation import make_triples, validate

TEMPLATES = [
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}", "a photo of my {}",
    "a close-up photo of a {}", "a bright photo of the {}", "a photo of one {}", "a good photo of the {}",
]  # fmt: skip


class Pictures(Dataset):
    """Reads an item from disk, scales it, and mirrors it at random, each time it is requested."""

    def __init__(
        self, folder: Path, tokenizer: CLIPTokenizer, placeholder: str, resolution: int, repeats: int = 100
    ) -> None:
        self.files = [p for p in folder.iterdir() if not p.name.startswith(".")]
        self.tokenizer, self.placeholder = tokenizer, placeholder
        self.resolution, self.repeats = resolution, repeats

    def __len__(self) -> int:
        return len(self.files) * self.repeats

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image = Image.open(self.files[i % len(self.files)]).convert("RGB")
        image = image.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy((np.array(image) / 127.5 - 1.0).astype(np.float32)).permute(2, 0, 1)
        text = random.choice(TEMPLATES).format(self.placeholder)
        options = {"padding": "max_length", "truncation": True, "max_length": self.tokenizer.model_max_length}
        return {"pixels": pixels, "ids": self.tokenizer(text, return_tensors="pt", **options).input_ids[0]}


class _InBf16(torch.nn.Module):
    """A text encoder whose output is cast to the UNet's type, as in the loop below."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.text_encoder(ids)[0].to(torch.bfloat16))


def make_validation(
    args: argparse.Namespace,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    schedule: DDPMScheduler,
    accelerator: Accelerator,
) -> Callable[[], float]:
    """A function that measures what this loop has learned, with the engine's validation loss and triples."""
    pictures = list_pictures(args.pictures)
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    networks = StableDiffusionNetworks(
        model=args.model,
        unet=unet,
        text_encoder=_InBf16(text_encoder),
        tokenizer=tokenizer,
        scheduler=schedule,
        dtype=torch.bfloat16,
    )
    cache = LatentCache(
        networks.geometry,
        networks.load_image_encoder,
        PosteriorFiles(args.out / "latents", networks.image_encoder_id),
        pictures,
        args.resolution,
        False,
        **ranks,
        sum_over_ranks=lambda x: accelerator.reduce(x, "sum"),
    )
    triples = make_triples(cache, args.validation_triples, networks.num_timesteps)
    caption = caption_templates("object", None)[0].format(args.placeholder)
    return lambda: validate(networks, triples, lambda _: caption, args.batch, accelerator)


def main() -> None:
    """Train, and write metrics.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--placeholder", default="<dicoo>")
    parser.add_argument("--initializer", default="toy")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--validation-steps", type=int, default=0)
    parser.add_argument("--validation-triples", type=int, default=64)
    parser.add_argument("--ipex", action="store_true")
    args = parser.parse_args()

    if args.ipex:  # before Accelerate, as the article imports it
        import intel_extension_for_pytorch as ipex
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    set_seed(args.seed)

    tokenizer = CLIPTokenizer.from_pretrained(args.model, subfolder="tokenizer")
    schedule = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")
    text_encoder = CLIPTextModel.from_pretrained(args.model, subfolder="text_encoder")
    vae = AutoencoderKL.from_pretrained(args.model, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet")

    tokenizer.add_tokens([args.placeholder])
    placeholder_id = tokenizer.convert_tokens_to_ids(args.placeholder)
    [initializer_id] = tokenizer.encode(args.initializer, add_special_tokens=False)
    text_encoder.resize_token_embeddings(max(len(tokenizer), text_encoder.config.vocab_size), mean_resizing=False)
    matrix = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        matrix[placeholder_id] = matrix[initializer_id].clone()
    for module in (vae, unet, text_encoder):
        module.requires_grad_(False)
    text_encoder.get_input_embeddings().requires_grad_(True)

    optimizer = torch.optim.AdamW(
        text_encoder.get_input_embeddings().parameters(), lr=args.learning_rate, weight_decay=0.01
    )
    dataset = Pictures(args.pictures, tokenizer, args.placeholder, args.resolution)
    loader = DataLoader(dataset, batch_size=args.batch, shuffle=True)
    rates = get_scheduler("constant", optimizer)
    text_encoder.train()
    text_encoder, optimizer, loader, rates = accelerator.prepare(text_encoder, optimizer, loader, rates)
    unet.to(dtype=torch.bfloat16)
    vae.to(dtype=torch.bfloat16)
    if args.ipex:
        unet = ipex.optimize(unet.eval(), dtype=torch.bfloat16)
        vae = ipex.optimize(vae.eval(), dtype=torch.bfloat16)
    bare = accelerator.unwrap_model(text_encoder)
    original = bare.get_input_embeddings().weight.data.clone()

    metrics = None
    if accelerator.is_main_process:
        args.out.mkdir(parents=True, exist_ok=True)
        metrics = (args.out / "metrics.jsonl").open("w", buffering=1, encoding="utf-8")

    def write(**fields: object) -> None:
        if metrics is not None:
            metrics.write(json.dumps({"time": time.time(), **fields}) + "\n")

    measure = None
    if args.validation_steps:
        measure = make_validation(args, unet, bare, tokenizer, schedule, accelerator)
        write(kind="validation", step=0, loss=measure())

    write(kind="start", host=platform.node(), torch=torch.__version__)
    step, began = 0, time.perf_counter()
    while step < args.steps:
        for batch in loader:
            loaded = time.perf_counter()
            latents = vae.encode(batch["pixels"].to(torch.bfloat16)).latent_dist.sample().detach()
            latents = latents * vae.config.scaling_factor
            encoded = time.perf_counter()
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),))
            noisy = schedule.add_noise(latents, noise, timesteps)
            hidden = text_encoder(batch["ids"])[0].to(torch.bfloat16)
            predicted = unet(noisy, timesteps, hidden).sample
            loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
            forward = time.perf_counter()
            accelerator.backward(loss)  # DDP all-reduces the whole matrix in here
            backward = time.perf_counter()
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            others = torch.ones(len(original), dtype=torch.bool)
            others[placeholder_id] = False
            with torch.no_grad():
                bare.get_input_embeddings().weight[others] = original[others]
            step += 1
            write(
                kind="step",
                step=step,
                loss=loss.item(),
                step_s=time.perf_counter() - began,
                pictures_s=loaded - began,
                vae_s=encoded - loaded,
                forward_s=forward - encoded,
                backward_s=backward - forward,
                optimizer_s=time.perf_counter() - backward,
                sync_bytes=original.nbytes if accelerator.num_processes > 1 else 0,
                world_size=accelerator.num_processes,
            )
            if step == 1:
                reset_peak_rss()
            began = time.perf_counter()
            if measure is not None and (step % args.validation_steps == 0 or step == args.steps):
                write(kind="validation", step=step, loss=measure())
                began = time.perf_counter()
            if step == args.steps:
                break
    write(kind="end", peak_rss_bytes=peak_rss_bytes())
    accelerator.wait_for_everyone()
    accelerator.end_training()
    # At exit, DDP's reducer joins gloo's threads while it holds the interpreter lock, for which they may wait. With
    # torch 2.13 a rank was seen to hang there after its last step. The engine does not use DDP.
    os._exit(0)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
