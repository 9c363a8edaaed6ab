"""Baseline of the benchmarks: a plain loop that does what diffusers' ``textual_inversion.py`` does.

With a pipeline in the layout of Stable Diffusion XL it does what ``textual_inversion_sdxl.py`` does.

    python bench/plain_loop.py --model M --pictures P --out O --steps 8 [--resolution 512] [--batch 1] [--ipex]
    mpirun -n 2 python bench/plain_loop.py ...

Like that script, and unlike our engine, it loads all weights in float32 and casts them afterwards; reads, scales and
encodes its pictures at every step; runs AdamW over the whole embedding matrix, and restores the other rows after the
step; all-reduces the gradient of the whole matrix under DDP; and gives all ranks the same seed, so the same noise and
timesteps. With --ipex it optimizes UNet and VAE as the article does. It writes the same ``metrics.jsonl`` as the
engine, so that one program can compare them. It is not part of the product.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import plain_command
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from plain_model import Pictures, PlainModel
from torch.utils.data import DataLoader
from transformers import CLIPTextModel, CLIPTokenizer

from sdtune.data.captions import caption_templates
from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures
from sdtune.data.posterior_files import PosteriorFiles
from sdtune.host.memory import peak_rss_bytes, reset_peak_rss
from sdtune.models.family import TextEncoder
from sdtune.models.sd import StableDiffusionNetworks
from sdtune.training.validation import make_triples, validate


class _Cast(torch.nn.Module):
    """A text encoder whose output is cast to the UNet's type, as in the loop below."""

    def __init__(self, text_encoder: CLIPTextModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.text_encoder, self.dtype = text_encoder, dtype

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.text_encoder(ids)[0].to(self.dtype))


def make_validation(args: argparse.Namespace, model: PlainModel, accelerator: Accelerator) -> Callable[[], float]:
    """A function that measures what this loop has learned, with the engine's validation loss and triples.

    For pipelines in the layout of Stable Diffusion 1.5.
    """
    pictures = list_pictures(args.pictures)
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    text_encoder = accelerator.unwrap_model(model.text_encoders[0])
    networks = StableDiffusionNetworks(
        model=args.model,
        unet=model.unet,
        text_encoders={
            "text_encoder": TextEncoder(
                model=_Cast(text_encoder, model.dtype),
                tokenizer=model.tokenizers[0],
                name_in_files="",
                adapter_prefix="",
            )
        },
        scheduler=model.schedule,
        dtype=model.dtype,
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


class Loop:
    """What the script holds: models, optimizer and pictures, prepared by Accelerate."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator) -> None:
        self.accelerator, self.side = accelerator, args.resolution
        self.model = model = PlainModel(args.model)
        self.placeholder_ids = [
            add_placeholder(tokenizer, encoder, args.placeholder, args.initializer)
            for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True)
        ]
        for encoder in model.text_encoders:
            encoder.get_input_embeddings().requires_grad_(True)
        dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
        for network in (model.unet, model.vae, *model.text_encoders[1:]):  # in XL's script, the second encoder too
            network.to(dtype=dtype)
        self.prepare(args)
        if args.ipex:
            import intel_extension_for_pytorch as ipex

            model.unet = ipex.optimize(model.unet.eval(), dtype=torch.bfloat16)
            model.vae = ipex.optimize(model.vae.eval(), dtype=torch.bfloat16)
        self.embeddings = [accelerator.unwrap_model(x).get_input_embeddings() for x in model.text_encoders]
        self.originals = [embedding.weight.data.clone() for embedding in self.embeddings]

    def prepare(self, args: argparse.Namespace) -> None:
        """Let Accelerate wrap text encoders, optimizer, pictures and learning rate."""
        model = self.model
        parameters = [encoder.get_input_embeddings().weight for encoder in model.text_encoders]
        optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.01)
        dataset = Pictures(args.pictures, model.tokenizers, args.placeholder, args.resolution)
        loader = DataLoader(dataset, batch_size=args.batch, shuffle=True)
        rates = get_scheduler("constant", optimizer)
        for encoder in model.text_encoders:
            encoder.train()
        *model.text_encoders, self.optimizer, self.loader, self.rates = self.accelerator.prepare(
            *model.text_encoders, optimizer, loader, rates
        )

    def step(self, batch: dict[str, torch.Tensor], began: float) -> dict[str, object]:
        """Train on a batch, which was requested at ``began``; returns what metrics.jsonl has of it."""
        loaded = time.perf_counter()
        latents = self.model.encode_pixels(batch["pixels"])
        encoded = time.perf_counter()
        loss = self.model.loss(latents, self.model.encode(batch["ids"]), self.side)
        forward = time.perf_counter()
        self.accelerator.backward(loss)  # DDP all-reduces the whole matrices in here
        backward = time.perf_counter()
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad()
        for embedding, original, learned in zip(self.embeddings, self.originals, self.placeholder_ids, strict=True):
            others = torch.ones(len(original), dtype=torch.bool)
            others[learned] = False
            with torch.no_grad():
                embedding.weight[others] = original[others]
        ended = time.perf_counter()
        ranks = self.accelerator.num_processes
        return {
            "loss": loss.item(),
            "step_s": ended - began,
            "pictures_s": loaded - began,
            "vae_s": encoded - loaded,
            "forward_s": forward - encoded,
            "backward_s": backward - forward,
            "optimizer_s": ended - backward,
            "sync_bytes": sum(original.nbytes for original in self.originals) if ranks > 1 else 0,
            "world_size": ranks,
        }


def add_placeholder(tokenizer: CLIPTokenizer, encoder: Any, placeholder: str, initializer: str) -> int:
    """Add the token, which starts as the initializer token does; returns its number."""
    tokenizer.add_tokens([placeholder])
    placeholder_id = int(tokenizer.convert_tokens_to_ids(placeholder))
    [initializer_id] = tokenizer.encode(initializer, add_special_tokens=False)
    size = max(len(tokenizer), encoder.config.vocab_size)
    encoder.resize_token_embeddings(size, mean_resizing=False)
    matrix = encoder.get_input_embeddings().weight
    with torch.no_grad():
        matrix[placeholder_id] = matrix[initializer_id].clone()
    return placeholder_id


def parse() -> argparse.Namespace:
    """The command line."""
    parser = plain_command.parser(__doc__)
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="of AdamW (default 5e-3)")
    parser.add_argument("--placeholder", default="<dicoo>", help="token that is learned (default <dicoo>)")
    parser.add_argument("--initializer", default="toy", help="token that it starts from (default toy)")
    parser.add_argument("--validation-steps", type=int, default=0, help="steps between validations (default 0, none)")
    parser.add_argument("--validation-triples", type=int, default=64, help="triples of a validation (default 64)")
    parser.add_argument("--mixed-precision", choices=("bf16", "no"), default="bf16", help="default bf16")
    parser.add_argument("--ipex", action="store_true", help="optimize UNet and VAE with Intel's extension")
    return parser.parse_args()


def run(loop: Loop, args: argparse.Namespace, write: Callable[..., None]) -> None:
    """Train for all steps, and validate between them."""
    measure = None
    if args.validation_steps:
        measure = make_validation(args, loop.model, loop.accelerator)
        write(kind="validation", step=0, loss=measure())
    write(kind="start", host=platform.node(), torch=torch.__version__)
    step, began = 0, time.perf_counter()
    while step < args.steps:
        for batch in loop.loader:
            fields = loop.step(batch, began)
            step += 1
            write(kind="step", step=step, **fields)
            if step == 1:
                reset_peak_rss()
            if measure is not None and (step % args.validation_steps == 0 or step == args.steps):
                write(kind="validation", step=step, loss=measure())
            if step == args.steps:
                break
            began = time.perf_counter()
    write(kind="end", peak_rss_bytes=peak_rss_bytes())


def main() -> None:
    """Train, and write metrics.jsonl."""
    args = parse()
    if args.ipex:  # before Accelerate, as the article imports it
        import intel_extension_for_pytorch  # noqa: F401
    accelerator = Accelerator(cpu=True, mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    loop = Loop(args, accelerator)
    run(loop, args, plain_command.metrics_writer(args.out, accelerator))
    plain_command.end(accelerator)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
