"""Baseline of the benchmarks: a plain loop that does what diffusers' ``train_dreambooth_lora.py`` does by default.

    python bench/plain_lora_loop.py --model M --pictures P --out O --steps 8 [--resolution 512] [--batch 1] [--rank 8]
    mpirun -n 2 python bench/plain_lora_loop.py ...

Like that script, and unlike our engine, it reads, scales and encodes its pictures with the VAE at every step, and their
caption with the text encoder; peft's own layers compute the adapters; DDP exchanges their gradients; all ranks have one
seed. It writes the same ``metrics.jsonl`` as the engine, so that one program can compare them. It is not part of the
product.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from plain_loop import Pictures
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import CLIPTextModel, CLIPTokenizer

from sdtune.host.memory import peak_rss_bytes, reset_peak_rss


def main() -> None:
    """Train, and write metrics.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    set_seed(args.seed)
    tokenizer = CLIPTokenizer.from_pretrained(args.model, subfolder="tokenizer")
    schedule = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")
    text_encoder = CLIPTextModel.from_pretrained(args.model, subfolder="text_encoder")
    vae = AutoencoderKL.from_pretrained(args.model, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet")
    for module in (vae, text_encoder, unet):
        module.requires_grad_(False).to(dtype=torch.bfloat16)
    unet.add_adapter(
        LoraConfig(
            r=args.rank,
            lora_alpha=args.rank,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    learned = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=0.01)
    loader = DataLoader(
        Pictures(args.pictures, tokenizer, "sks toy", args.resolution), batch_size=args.batch, shuffle=True
    )
    rates = get_scheduler("constant", optimizer)
    unet.train()
    unet, optimizer, loader, rates = accelerator.prepare(unet, optimizer, loader, rates)

    metrics = None
    if accelerator.is_main_process:
        args.out.mkdir(parents=True, exist_ok=True)
        metrics = (args.out / "metrics.jsonl").open("w", buffering=1, encoding="utf-8")

    def write(**fields: object) -> None:
        if metrics is not None:
            metrics.write(json.dumps({"time": time.time(), **fields}) + "\n")

    write(kind="start", host=platform.node(), torch=torch.__version__)
    step, began = 0, time.perf_counter()
    while step < args.steps:
        for batch in loader:
            loaded = time.perf_counter()
            latents = vae.encode(batch["pixels"].to(torch.bfloat16)).latent_dist.sample()
            latents = latents * vae.config.scaling_factor
            encoded = time.perf_counter()
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),))
            noisy = schedule.add_noise(latents, noise, timesteps)
            hidden = text_encoder(batch["ids"])[0]
            loss = F.mse_loss(unet(noisy, timesteps, hidden).sample.float(), noise.float(), reduction="mean")
            forward = time.perf_counter()
            accelerator.backward(loss)
            backward = time.perf_counter()
            accelerator.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
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
                sync_bytes=sum(p.nbytes for p in learned) if accelerator.num_processes > 1 else 0,
                world_size=accelerator.num_processes,
            )
            if step == 1:
                reset_peak_rss()
            began = time.perf_counter()
            if step == args.steps:
                break
    write(kind="end", peak_rss_bytes=peak_rss_bytes())
    accelerator.wait_for_everyone()
    accelerator.end_training()
    os._exit(0)  # see plain_loop.py: DDP may hang at exit


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
