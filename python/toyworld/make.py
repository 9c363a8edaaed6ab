"""Train the embedded Stable Diffusion pipeline from scratch: about an hour on two cores.

    python -m toyworld.make --out ../toyworld            # what `make toyworld` runs
    python -m toyworld.make --out /tmp/try --vae-steps 20 --unet-steps 20 --examples 200   # a quick trial

Writes ``model/`` (diffusers folder layout, float16 safetensors), ``concept/*.jpg`` (five pictures of the toy that is
not in the training set), ``trained.png`` (images for captions of the training set) and ``log.jsonl``.
"""

import argparse
import copy
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from sdtune.inference.images import contact_sheet
from sdtune.models.pipelines import assemble
from toyworld.captions import examples
from toyworld.drawings import draw_toy
from toyworld.networks import SIDE, make_models, make_scheduler
from toyworld.tokenizer import make_tokenizer
from toyworld.toys import CONCEPT, CONCEPT_POSES
from toyworld.training import Log, encode_all, train_unet, train_vae


def save_model(
    model: Path, tokenizer: CLIPTokenizer, vae: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel
) -> None:
    """Write the pipeline in float16."""
    pipeline = assemble(
        vae=copy.deepcopy(vae),
        unet=copy.deepcopy(unet),
        text_encoder=copy.deepcopy(text),
        tokenizer=tokenizer,
        scheduler=make_scheduler(),
    )
    pipeline.to(torch.float16).save_pretrained(model)
    # stored in float16, to be used in float32: transformers takes the default type from this line
    config = model / "text_encoder" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")


def train(args: argparse.Namespace, captions: list[str], pixels: np.ndarray, model: Path, log: Log) -> None:
    """Train all networks, and save them to ``model``."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    tokenizer = make_tokenizer(captions, model / "tokenizer")
    vae, unet, text = make_models(tokenizer)
    networks = {"vae": vae, "unet": unet, "text_encoder": text}
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    log(part="models", vocabulary=len(tokenizer), **sizes)

    if args.keep_vae:
        log(part="vae", kept=True)
    else:
        vae = train_vae(vae, pixels, args.vae_steps, args.vae_batch, rng, log)
        vae.half().save_pretrained(model / "vae")
    # From here on with the VAE as it is shipped, in float16. The new seed makes the second half independent of how the
    # first was run.
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).eval()
    torch.manual_seed(args.seed + 1)
    latents = encode_all(vae, pixels)
    log(part="latents", scaling_factor=vae.config.scaling_factor, mean_std=round(latents[1].mean().item(), 4))

    def save(unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
        save_model(model, tokenizer, vae, unet, text)

    scheduler = DDPMScheduler.from_config(make_scheduler().config)
    train_unet(unet, text, tokenizer, scheduler, latents, captions, args.unet_steps, args.unet_batch, log, save)


def draw_concept(folder: Path) -> None:
    """Write the five pictures of the concept."""
    folder.mkdir(exist_ok=True)
    for i, pose in enumerate(CONCEPT_POSES):
        draw_toy(CONCEPT, pose, 512).save(folder / f"{i}.jpg", quality=92)


def generate_sheet(model: Path, captions: list[str], seed: int, file: Path) -> None:
    """Generate images for 24 captions of the training set with the trained model, and write a contact sheet."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
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
    parser.add_argument("--keep-vae", action="store_true", help="keep the VAE that an earlier run left in model/vae")
    return parser


def main() -> None:
    """Make everything: training set, model, pictures of the concept, and the sheet."""
    args = _parser().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / "log.jsonl", append=args.keep_vae)
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    log(part="start", torch=torch.__version__, threads=torch.get_num_threads(), **settings)
    training_set = list(examples(args.examples, args.names, args.seed))
    pixels = np.stack([np.asarray(draw_toy(e.toy, e.pose, SIDE)) for e in training_set])
    captions = [e.caption for e in training_set]
    model = args.out / "model"
    train(args, captions, pixels, model, log)
    draw_concept(args.out / "concept")
    generate_sheet(model, captions, args.seed, args.out / "trained.png")
    log(part="end", megabytes=round(sum(f.stat().st_size for f in model.rglob("*.safetensors")) / 1e6, 2))


if __name__ == "__main__":
    main()
