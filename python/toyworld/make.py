"""Train the embedded Stable Diffusion pipelines from scratch: about an hour on two cores each.

    python -m toyworld.make --out ../toyworld            # what `make toyworld` runs
    python -m toyworld.make --layout sdxl --vae ../toyworld/model/vae --unet-steps 4000 --out ../toyworld/xl
    python -m toyworld.make --out /tmp/try --vae-steps 20 --unet-steps 20 --examples 200   # a quick trial

Writes ``model/`` (diffusers folder layout, float16 safetensors), ``concept/*.jpg``, ``concept-*/*.jpg`` (five pictures
of each toy that is not in the training set), ``trained.png`` (images for captions of it) and ``log.jsonl``.
"""

import argparse
import copy
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline
from PIL import Image

from sdtune.inference.images import contact_sheet
from toyworld.captions import examples
from toyworld.drawings import draw_toy
from toyworld.layouts import ExtraLarge, Layout, Plain
from toyworld.networks import make_scheduler, make_vae
from toyworld.tokenizer import make_tokenizer
from toyworld.toys import CONCEPTS
from toyworld.training import Log, encode_all, train_unet, train_vae
from toyworld.views import View, draw_view, random_view


def save_model(model: Path, layout: Layout, vae: AutoencoderKL, networks: dict[str, torch.nn.Module]) -> None:
    """Write the pipeline in float16."""
    pipeline = layout.pipeline(copy.deepcopy(vae), copy.deepcopy(networks))
    pipeline.to(torch.float16).save_pretrained(model)
    # stored in float16, to be used in float32: transformers takes the default type from this line
    for config in model.glob("text_encoder*/config.json"):
        config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")


def make_layout(name: str, captions: list[str], views: list[View], model: Path) -> Layout:
    """The layout ``sd`` or ``sdxl``; writes its tokenizers to ``model``."""
    tokenizer = make_tokenizer(captions, model / "tokenizer")
    if name == "sd":
        return Plain(tokenizer, captions)
    # Stable Diffusion XL pads the texts of its second encoder with token 0
    second = make_tokenizer(captions, model / "tokenizer_2", pad="!")
    return ExtraLarge([tokenizer, second], captions, views)


def train(args: argparse.Namespace, layout: Layout, pixels: np.ndarray, model: Path, log: Log) -> None:
    """Train all networks, and save them to ``model``."""
    vae = make_vae()
    networks = {"vae": vae, **layout.networks}
    log(part="models", **{name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()})

    if args.vae:
        log(part="vae", kept=str(args.vae))
        shutil.copytree(args.vae, model / "vae", dirs_exist_ok=True)
    else:
        vae = train_vae(vae, pixels, args.vae_steps, args.vae_batch, np.random.default_rng(args.seed), log)
        vae.half().save_pretrained(model / "vae")
    # From here on with the VAE as it is shipped, in float16. The new seed makes the second half independent of how the
    # first was run.
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).eval()
    torch.manual_seed(args.seed + 1)
    mean, std = encode_all(vae, pixels)
    if not args.vae:  # unit variance over all images
        factor = round(1 / (mean + std * torch.randn_like(mean)).std().item(), 5)
        vae.register_to_config(scaling_factor=factor)
    latents = (mean * vae.config.scaling_factor, std * vae.config.scaling_factor)
    log(part="latents", scaling_factor=vae.config.scaling_factor, mean_std=round(latents[1].mean().item(), 4))

    scheduler = DDPMScheduler.from_config(make_scheduler().config)
    save = partial(save_model, model, layout, vae)
    train_unet(layout, scheduler, latents, args.unet_steps, args.unet_batch, log, save)


def draw_concepts(out: Path) -> None:
    """Write the five pictures of each concept to a folder of its name."""
    for name, (toy, poses) in CONCEPTS.items():
        folder = out / name
        folder.mkdir(exist_ok=True)
        for i, pose in enumerate(poses):
            draw_toy(toy, pose, 512 if name == "concept" else 256).save(folder / f"{i}.jpg", quality=92)


def generate_sheet(model: Path, captions: list[str], seed: int, file: Path) -> None:
    """Generate images for 24 captions of the training set with the trained model, and write a contact sheet."""
    pipeline = DiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    shown = random.Random(seed).sample([c for c in dict.fromkeys(captions) if " in " in c or " at " in c], 24)
    images: list[Image.Image] = [
        pipeline(c, num_inference_steps=30, guidance_scale=4.0, generator=torch.Generator().manual_seed(i)).images[0]
        for i, c in enumerate(shown)
    ]
    contact_sheet(images, shown, columns=6, cell=160).save(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m toyworld.make"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that everything is written to")
    parser.add_argument("--examples", type=int, default=12_000, help="images of the training set (%(default)s)")
    parser.add_argument("--names", type=int, default=300, help="named toys (%(default)s)")
    parser.add_argument("--vae-steps", type=int, default=9_000, help="optimizer steps of the VAE (%(default)s)")
    parser.add_argument(
        "--unet-steps", type=int, default=9_000, help="optimizer steps of UNet and text encoder (%(default)s)"
    )
    parser.add_argument("--vae-batch", type=int, default=8, help="batch size of the VAE (%(default)s)")
    parser.add_argument("--unet-batch", type=int, default=32, help="batch size of UNet and text encoder (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random (%(default)s)")
    parser.add_argument("--vae", type=Path, help="folder of a VAE to take in place of training one")
    parser.add_argument("--layout", choices=("sd", "sdxl"), default="sd", help="of the pipeline (%(default)s)")
    return parser


def main() -> None:
    """Make everything: training set, model, pictures of the concept, and the sheet."""
    args = _parser().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / "log.jsonl")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"}
    log(part="start", torch=torch.__version__, threads=torch.get_num_threads(), **settings)
    training_set = list(examples(args.examples, args.names, args.seed))
    captions = [e.caption for e in training_set]
    rng = random.Random(args.seed)
    views = [random_view(rng) if args.layout == "sdxl" else View() for _ in training_set]
    pixels = np.stack([np.asarray(draw_view(e.toy, e.pose, v)) for e, v in zip(training_set, views, strict=True)])
    model = args.out / "model"
    torch.manual_seed(args.seed)
    train(args, make_layout(args.layout, captions, views, model), pixels, model, log)
    if args.layout == "sd":  # the other layout learns the same concepts
        draw_concepts(args.out)
    generate_sheet(model, captions, args.seed, args.out / "trained.png")
    log(part="end", megabytes=round(sum(f.stat().st_size for f in model.rglob("*.safetensors")) / 1e6, 2))


if __name__ == "__main__":
    main()
