"""Is toyworld a fair test of textual inversion? Seeds 1 to 5 against every caption that a person could write.

    python bench/toyworld_stage.py --model ../toyworld/model --pictures ../toyworld/concept --out ../toyworld

For each seed, 100 steps at a global batch of 16. The loss is over 64 fixed (picture, timestep, noise) triples: of the
initializer token, of each hand-written caption, and of the learned placeholder token, which should be at most that of
the best caption. Writes ``stage.json`` with all numbers and ``stage.png``: concept | initializer | best caption |
learned.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures
from sdtune.data.posterior_files import PosteriorFiles
from sdtune.inference.images import contact_sheet
from sdtune.launch.run_folder import Run
from sdtune.models.pipelines import draw
from sdtune.models.registry import family_of
from sdtune.models.weights import cache_folder
from sdtune.settings import DataArgs, Job, ModelArgs, TrainingArgs, ValidationArgs
from sdtune.training.trainer import train
from sdtune.training.validation import make_triples, validate
from toyworld.captions import best_captions


def caption_losses(job: Job, nouns: list[str]) -> dict[str, float]:
    """The validation loss of ``a photo of a <noun>`` for each noun, without training."""
    pictures = list_pictures(job.data.path)
    networks = family_of(job.model.path).load(job)
    cache = LatentCache(
        networks.geometry,
        networks.load_image_encoder,
        PosteriorFiles(cache_folder(job) / "latents", networks.image_encoder_id),
        pictures,
        job.data.resolution,
        job.data.center_crop,
    )
    triples = make_triples(cache, job.validation.triples, networks.num_timesteps)
    accelerator = Accelerator(cpu=True)

    def loss(caption: str) -> float:
        return validate(networks, triples, lambda _: caption, 16, accelerator)

    return {noun: loss(f"a photo of a {noun}") for noun in nouns}


def make_sheet(pictures: Path, pipeline_folder: Path, nouns: list[str]) -> Image.Image:
    """A contact sheet: a column for each picture of the concept, and below it an image of each noun."""
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    files = list_pictures(pictures)
    cells: list[Image.Image] = []
    captions: list[str] = []
    for i, picture in enumerate(files):
        cells.append(Image.open(picture))
        captions.append(f"concept: picture {i + 1} of {len(files)}")
        for noun in nouns:
            prompt = f"a photo of a {noun}"
            with torch.no_grad():
                cells.append(draw(pipeline, [prompt], [i + 1], num_inference_steps=30, guidance_scale=4.0)[0])
            captions.append(f"{prompt} (seed {i + 1})")
    height = 1 + len(nouns)
    order = [row + height * column for row in range(height) for column in range(len(files))]
    return contact_sheet([cells[k] for k in order], [captions[k] for k in order], len(files), 160)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder of toyworld")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of the concept's pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives stage.json and stage.png")
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="of AdamW (default 5e-3)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each seed (default 100)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="one training each (default 1 to 5)"
    )
    parser.add_argument(
        "--mixed-precision", choices=("bf16", "no"), default="bf16", help="of the training (default bf16)"
    )
    return parser.parse_args()


def main() -> None:
    """Measure, generate the sheet, and fail if a seed does not reach the best caption."""
    args = parse()
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(
            run_name="stage",
            run_dir=scratch,
            model=ModelArgs(path=str(args.model)),
            data=DataArgs(path=str(args.pictures), resolution=64),
            training=TrainingArgs(
                max_train_steps=args.steps,
                train_batch_size=16,
                learning_rate=args.learning_rate,
                mixed_precision=args.mixed_precision,
                checkpointing_steps=0,
            ),
            validation=ValidationArgs(steps=args.steps, triples=64),
        )
        losses = caption_losses(job, best_captions())
        best = min(losses, key=losses.__getitem__)
        figures = {"initializer": losses["toy"], "best_caption": best, "best_caption_loss": losses[best]}
        print(
            f"initializer {losses['toy']:.5f}, best of {len(losses)} captions {losses[best]:.5f} ({best})", flush=True
        )
        learned: dict[int, float] = {}
        for seed in args.seeds:
            run_dir = Path(scratch) / str(seed)
            learned[seed] = train(replace(job, run_dir=str(run_dir), seed=seed))["validation_loss"]
            closed = (losses["toy"] - learned[seed]) / (losses["toy"] - losses[best])
            print(f"seed {seed}: learned {learned[seed]:.5f}, {100 * closed:.0f} % of the gap", flush=True)
        figures |= {
            "learned": learned,
            "captions": losses,
            "steps": args.steps,
            "learning_rate": args.learning_rate,
            "mixed_precision": args.mixed_precision,
        }
        (args.out / "stage.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

        sheet = make_sheet(
            args.pictures, Run(Path(scratch) / str(args.seeds[0])).pipeline, ["toy", best, job.data.placeholder_token]
        )
        sheet.save(args.out / "stage.png")
    late = [seed for seed, loss in learned.items() if loss > losses[best]]
    if late:
        raise SystemExit(f"seeds {late} did not reach the best caption within {args.steps} steps")


if __name__ == "__main__":
    main()
