"""Train the embedded Stable Diffusion pipeline from nothing: about an hour on two cores.

    python make.py --out ../toyworld            # what `make toyworld` runs
    python make.py --out /tmp/try --vae-steps 20 --unet-steps 20 --examples 200   # does it run at all

Writes ``model/`` (diffusers folder layout, float16 safetensors), ``concept/*.jpg`` (the five pictures of the toy that
the model has never seen), ``trained.png`` (a sheet of drawings for captions of its training set) and ``log.jsonl``.
"""

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdtune.inference.images import contact_sheet
from sdtune.models.pipelines import assemble
from toyworld import drawings

SIDE, LATENT_CHANNELS, TEXT_WIDTH, MAX_TOKENS = 64, 4, 128, 32
START, END = "<|startoftext|>", "<|endoftext|>"


class Log:
    """Prints a line and appends it to ``log.jsonl``."""

    def __init__(self, path: Path, append: bool) -> None:
        self.path, self.begun = path, time.time()
        path.open("a" if append else "w").close()

    def __call__(self, **fields: Any) -> None:
        """Write one line."""
        line = json.dumps({"t": round(time.time() - self.begun, 1), **fields})
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(line + "\n")


def make_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer in which every word of the captions is one token, and any other text still a few."""
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]|[^\sa-z0-9]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # the alphabet's letters have to be tokens at a word's end too, so each is shown as a word of its own
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-:;()")
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([*captions, *letters], trainer)
    learned = json.loads(bpe.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(m) for m in learned["merges"]]
    vocabulary = [*alphabet, *(c + "</w>" for c in alphabet), *dict.fromkeys("".join(m) for m in merges), START, END]
    vocab = {token: i for i, token in enumerate(vocabulary)}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(folder)
    # the two files that every CLIP tokenizer class since 2022 reads
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", encoding="utf-8"
    )
    for word in sorted({w for c in captions for w in c.split()}):
        if len(tokenizer.encode(word, add_special_tokens=False)) != 1 and word.isalpha():
            raise RuntimeError(f"the word {word!r} is not one token")
    return tokenizer


def make_models(tokenizer: CLIPTokenizer) -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel]:
    """The three untrained networks: about 1.0, 4.0 and 0.6 million parameters."""
    vae = AutoencoderKL(
        sample_size=SIDE,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 24, 48, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 112),
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return vae, unet, text


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


class Average:
    """Exponential moving average of modules' weights, with the usual warm-up of the decay."""

    def __init__(self, *modules: torch.nn.Module, decay: float = 0.999) -> None:
        self.modules, self.decay, self.steps = modules, decay, 0
        self.copies = [copy.deepcopy(m).requires_grad_(False).eval() for m in modules]

    @torch.no_grad()
    def update(self) -> None:
        """Take the modules' present weights in."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for module, average in zip(self.modules, self.copies, strict=True):
            for p, q in zip(module.parameters(), average.parameters(), strict=True):
                q.lerp_(p, 1 - decay)


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then half a cosine down to 2 % of the rate."""

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def batch_of(pixels: np.ndarray, index: Any) -> torch.Tensor:
    """uint8 [n, side, side, 3] -> float [len(index), 3, side, side] in [-1, 1]."""
    return torch.from_numpy(pixels[index]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def train_vae(
    vae: AutoencoderKL, pixels: np.ndarray, steps: int, batch: int, rng: np.random.Generator, log: Log
) -> AutoencoderKL:
    """Absolute and squared error on pixels, absolute error on their differences, and a small Kullback-Leibler term."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    schedule, average = cosine(optimizer, steps, 100), Average(vae, decay=0.999)
    vae.train()
    for step in range(1, steps + 1):
        x = batch_of(pixels, rng.integers(0, len(pixels), batch))
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (y.diff(dim=-2) - x.diff(dim=-2)).abs().mean()
        error = (y - x).abs().mean()
        kl = posterior.kl().mean() / (LATENT_CHANNELS * (SIDE // 8) ** 2)
        loss = error + 2 * (y - x).square().mean() + 0.5 * edges + 5e-5 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update()
        if step % 100 == 0 or step == steps:
            log(
                part="vae",
                step=step,
                error=round(error.item(), 4),
                edges=round(edges.item(), 4),
                kl=round(kl.item(), 2),
            )
    return average.copies[0]


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [n, 4, 8, 8] of every picture's latents, scaled to unit variance over all of them."""
    moments = [vae.encode(batch_of(pixels, slice(i, i + 64))).latent_dist for i in range(0, len(pixels), 64)]
    mean, std = torch.cat([m.mean for m in moments]), torch.cat([m.std for m in moments])
    factor = round(1 / (mean + std * torch.randn_like(mean)).std().item(), 5)
    vae.register_to_config(scaling_factor=factor)
    return mean * factor, std * factor


def train_unet(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDPMScheduler,
    latents: tuple[torch.Tensor, torch.Tensor],
    captions: list[str],
    steps: int,
    batch: int,
    log: Log,
    keep: Any,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Noise prediction with min-SNR weights (gamma 5), one caption in ten empty for classifier-free guidance."""
    ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    empty = tokenizer("", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    mean, std = latents
    optimizer = torch.optim.AdamW(
        [*unet.parameters(), *text.parameters()], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    schedule, average = cosine(optimizer, steps, 200), Average(unet, text, decay=0.999)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    unet.train()
    text.train()
    recent: list[float] = []
    for step in range(1, steps + 1):
        pick = torch.randint(len(captions), (batch,))
        x = mean[pick] + std[pick] * torch.randn(batch, *mean.shape[1:])
        t = torch.randint(scheduler.config.num_train_timesteps, (batch,))
        noise = torch.randn_like(x)
        words = torch.where((torch.rand(batch) < 0.1)[:, None], empty, ids[pick])
        predicted = unet(scheduler.add_noise(x, noise, t), t, text(words).last_hidden_state).sample
        weight = snr[t].clamp(max=5) / snr[t]
        loss = ((predicted - noise).square().mean(dim=(1, 2, 3)) * weight).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*unet.parameters(), *text.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        average.update()
        recent.append(loss.item())
        if step % 100 == 0 or step == steps:
            log(
                part="unet", step=step, loss=round(sum(recent) / len(recent), 5), lr=round(schedule.get_last_lr()[0], 6)
            )
            recent.clear()
        if step % 1000 == 0 or step == steps:
            keep(*average.copies)
    return average.copies[0], average.copies[1]


def main() -> None:
    """Draw, train, save, and show what was learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=12_000)
    parser.add_argument("--names", type=int, default=300)
    parser.add_argument("--vae-steps", type=int, default=9_000)
    parser.add_argument("--unet-steps", type=int, default=9_000)
    parser.add_argument("--vae-batch", type=int, default=8)
    parser.add_argument("--unet-batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep-vae", action="store_true", help="go on with the VAE that an earlier run left in model/vae"
    )
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / "log.jsonl", append=args.keep_vae)
    log(
        part="start",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        **{k: v for k, v in vars(args).items() if k != "out"},
    )
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    training_set = list(drawings.examples(args.examples, args.names, args.seed))
    pixels = np.stack([np.asarray(drawings.draw_toy(e.toy, e.pose, SIDE)) for e in training_set])
    captions = [e.caption for e in training_set]
    model = args.out / "model"
    tokenizer = make_tokenizer(captions, model / "tokenizer")
    vae, unet, text = make_models(tokenizer)
    log(
        part="models",
        vocabulary=len(tokenizer),
        **{
            k: sum(p.numel() for p in m.parameters())
            for k, m in {"vae": vae, "unet": unet, "text_encoder": text}.items()
        },
    )

    if args.keep_vae:
        log(part="vae", kept=True)
    else:
        vae = train_vae(vae, pixels, args.vae_steps, args.vae_batch, rng, log)
        vae.half().save_pretrained(model / "vae")
    # from here on the one that is shipped, in float16; and the second half does not depend on how the first was run
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).eval()
    torch.manual_seed(args.seed + 1)
    latents = encode_all(vae, pixels)
    log(part="latents", scaling_factor=vae.config.scaling_factor, mean_std=round(latents[1].mean().item(), 4))

    def keep(unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
        pipeline = assemble(
            vae=copy.deepcopy(vae),
            unet=copy.deepcopy(unet),
            text_encoder=copy.deepcopy(text),
            tokenizer=tokenizer,
            scheduler=make_scheduler(),
        )
        pipeline.to(torch.float16).save_pretrained(model)
        # stored in half, meant for float32: transformers goes by this line when its user names no type
        config = model / "text_encoder" / "config.json"
        config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")

    scheduler = DDPMScheduler.from_config(make_scheduler().config)
    train_unet(unet, text, tokenizer, scheduler, latents, captions, args.unet_steps, args.unet_batch, log, keep)

    folder = args.out / "concept"
    folder.mkdir(exist_ok=True)
    for i, pose in enumerate(drawings.CONCEPT_POSES):
        drawings.draw_toy(drawings.CONCEPT, pose, 512).save(folder / f"{i}.jpg", quality=92)

    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    shown = random.Random(args.seed).sample([c for c in dict.fromkeys(captions) if " in " in c or " at " in c], 24)
    pictures: list[Image.Image] = [
        pipeline(c, num_inference_steps=30, guidance_scale=4.0, generator=torch.Generator().manual_seed(i)).images[0]
        for i, c in enumerate(shown)
    ]
    contact_sheet(pictures, shown, columns=6, cell=160).save(args.out / "trained.png")
    log(part="end", megabytes=round(sum(f.stat().st_size for f in model.rglob("*.safetensors")) / 1e6, 2))


if __name__ == "__main__":
    main()
