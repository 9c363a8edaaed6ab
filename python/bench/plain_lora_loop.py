"""Baseline of the benchmarks: a plain loop that does what diffusers' ``train_dreambooth_lora.py`` does by default.

With a pipeline in the layout of Stable Diffusion XL it does what ``train_dreambooth_lora_sdxl.py`` does: the VAE stays
in float32, and the text encoders encode the one caption before the first step and go.

    python bench/plain_lora_loop.py --model M --pictures P --out O --steps 8 [--resolution 512] [--batch 1] [--rank 8]
    mpirun -n 2 python bench/plain_lora_loop.py ...

Like that script, and unlike our engine, it reads, scales and encodes its pictures with the VAE at every step, and their
caption with the text encoder; peft's own layers compute the adapters; DDP exchanges their gradients; all ranks have one
seed. It writes the same ``metrics.jsonl`` as the engine, so that one program can compare them. It is not part of the
product.
"""

import argparse
import gc
import os
import platform
import time
from collections.abc import Iterator

import plain_command
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from plain_model import Pictures, PlainModel, token_ids
from torch.utils.data import DataLoader

from sdtune.host.memory import peak_rss_bytes, reset_peak_rss


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = plain_command.parser(__doc__)
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters (default 8)")
    return parser.parse_args()


class Loop:
    """The loop of one rank."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the networks as the script does by default, the frozen ones in bf16."""
        self.args, self.accelerator = args, Accelerator(cpu=True, mixed_precision="bf16")
        set_seed(args.seed)
        self.model = model = PlainModel(args.model)
        model.unet.to(dtype=torch.bfloat16)
        for network in model.text_encoders if model.is_xl else (model.vae, *model.text_encoders):
            network.to(dtype=torch.bfloat16)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        model.unet.add_adapter(
            LoraConfig(r=args.rank, lora_alpha=args.rank, init_lora_weights="gaussian", target_modules=targets)
        )
        self.learned = [p for p in model.unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.learned, lr=1e-4, weight_decay=0.01)
        pictures = Pictures(args.pictures, model.tokenizers, "sks toy", args.resolution)
        model.unet.train()
        prepared = self.accelerator.prepare(
            model.unet,
            optimizer,
            DataLoader(pictures, batch_size=args.batch, shuffle=True),
            get_scheduler("constant", optimizer),
        )
        model.unet, self.optimizer, self.loader, self.rates = prepared
        self.encoded: tuple[torch.Tensor, ...] | None = None
        if model.is_xl:
            with torch.no_grad():
                self.encoded = model.encode(token_ids(model.tokenizers, "a photo of sks toy")[None])
            model.text_encoders.clear()
            gc.collect()

    def step(self, batch: dict[str, torch.Tensor], began: float) -> dict[str, float]:
        """One optimizer step; returns its loss and the seconds of its parts."""
        loaded = time.perf_counter()
        latents = self.model.encode_pixels(batch["pixels"])
        encoded = time.perf_counter()
        if self.encoded is None:
            conditions = self.model.encode(batch["ids"])
        else:
            conditions = tuple(x.repeat(len(latents), *[1] * (x.dim() - 1)) for x in self.encoded)
        loss = self.model.loss(latents, conditions, self.args.resolution)
        forward = time.perf_counter()
        self.accelerator.backward(loss)
        backward = time.perf_counter()
        self.accelerator.clip_grad_norm_(self.learned, 1.0)
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad()
        ended = time.perf_counter()
        return {
            "loss": loss.item(),
            "step_s": ended - began,
            "pictures_s": loaded - began,
            "vae_s": encoded - loaded,
            "forward_s": forward - encoded,
            "backward_s": backward - forward,
            "optimizer_s": ended - backward,
        }

    def steps(self) -> Iterator[dict[str, float]]:
        """All steps; the time of reading pictures counts."""
        step, began = 0, time.perf_counter()
        while True:
            for batch in self.loader:
                yield self.step(batch, began)
                step, began = step + 1, time.perf_counter()
                if step == self.args.steps:
                    return


def main() -> None:
    """Train, and write metrics.jsonl."""
    args = parse()
    loop = Loop(args)
    ranks = loop.accelerator.num_processes
    sync_bytes = sum(p.nbytes for p in loop.learned) if ranks > 1 else 0
    write = plain_command.metrics_writer(args.out, loop.accelerator)
    write(kind="start", host=platform.node(), torch=torch.__version__)
    for number, parts in enumerate(loop.steps(), start=1):
        write(kind="step", step=number, **parts, sync_bytes=sync_bytes, world_size=ranks)
        if number == 1:
            reset_peak_rss()
    write(kind="end", peak_rss_bytes=peak_rss_bytes())
    plain_command.end(loop.accelerator)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
