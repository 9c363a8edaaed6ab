"""Do LoRA and pivotal tuning learn more than textual inversion, and does prior preservation preserve? On toyworld.

    python bench/methods.py --model ../toyworld/model --pictures ../toyworld/concept --out DIR [--seeds 1 2 3 4 5]

Every method learns the concept in the same number of steps, for each seed. LoRA also trains with prior preservation;
the loss on 64 triples of pictures of other toys, with the class prompt, says how much of them was lost. Writes
``methods.json``, and ``comparison.html`` of the runs of the first seed.
"""

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[1]))
from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures
from sdtune.data.posterior_files import PosteriorFiles
from sdtune.launch.run_folder import Run
from sdtune.models.registry import family_of
from sdtune.report.comparison import write_comparison
from sdtune.settings import Job, build
from sdtune.training.trainer import train
from sdtune.training.validation import make_triples, validate
from toyworld.drawings import draw_toy
from toyworld.toys import random_pose, random_toy

CLASS_PROMPT = "a photo of a toy"
METHODS: dict[str, dict[str, Any]] = {
    "textual_inversion": {"method": "textual_inversion"},
    "lora": {"method": "lora", "data": {"instance_prompt": CLASS_PROMPT}, "lora": {"learning_rate": 1e-3}},
    "pivotal": {"method": "pivotal", "lora": {"learning_rate": 1e-3}},
    "lora-prior": {
        "method": "lora",
        "data": {"instance_prompt": CLASS_PROMPT},
        "lora": {"learning_rate": 1e-3},
        "prior": {"preservation": True, "class_prompt": CLASS_PROMPT},
    },
}


def make_job(args: argparse.Namespace, name: str, seed: int) -> Job:
    """The run of a method with a seed."""
    settings = METHODS[name]
    common: dict[str, Any] = {
        "run_name": f"{name}-{seed}",
        "run_dir": str(args.out / f"{name}-{seed}"),
        "overwrite": True,
        "seed": seed,
        "model": {"path": str(args.model)},
        "training": {
            "max_train_steps": args.steps,
            "train_batch_size": 16,
            "mixed_precision": args.mixed_precision,
            "checkpointing_steps": 0,
            "report_to": "none",
        },
        "validation": {"steps": args.steps // 4, "triples": 64, "reference_caption": "yellow toy"},
    }
    data = {"path": str(args.pictures), "resolution": 64, **settings.get("data", {})}
    return build(Job, {**common, **settings, "data": data})


def loss_on_others(job: Job, model: Path, others: Path) -> float:
    """Loss of the class prompt on 64 triples of pictures of other toys."""
    measured = replace(
        job, model=replace(job.model, path=str(model)), data=replace(job.data, path=str(others), center_crop=False)
    )
    networks = family_of(model).load(measured)
    files = PosteriorFiles(others.with_name("others-latents"), networks.image_encoder_id)
    cache = LatentCache(networks.geometry, networks.load_image_encoder, files, list_pictures(others), 64, False)
    triples = make_triples(cache, 64, networks.num_timesteps)
    return validate(networks, triples, lambda _: CLASS_PROMPT, 16, Accelerator(cpu=True))


def main() -> None:
    """Train all, and print what the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of toyworld's pipeline")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of the pictures of a concept")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the figures")
    parser.add_argument("--steps", type=int, default=100, help="of each run (default 100)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default 1 to 5")
    parser.add_argument("--mixed-precision", choices=("bf16", "no"), default="bf16", help="default bf16")
    args = parser.parse_args()
    others = args.out / "others"
    others.mkdir(parents=True, exist_ok=True)
    rng = random.Random(5)
    for number in range(16):
        draw_toy(random_toy(rng), random_pose(rng), 64).save(others / f"{number:02d}.png")
    figures: dict[str, Any] = {"steps": args.steps, "validation": {}, "others": {}}
    for seed in args.seeds:
        for name in METHODS:
            job = make_job(args, name, seed)
            figures["validation"][f"{name}-{seed}"] = train(job)["validation_loss"]
            if name.startswith("lora"):
                figures["others"][f"{name}-{seed}"] = loss_on_others(job, Run(job.run_dir).pipeline, others)
            print(name, seed, {key: figures[key].get(f"{name}-{seed}") for key in ("validation", "others")}, flush=True)
        figures["others"].setdefault("base", loss_on_others(job, args.model, others))
        (args.out / "methods.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    runs = [Path(make_job(args, name, args.seeds[0]).run_dir) for name in METHODS]
    print(write_comparison(runs, args.out / "comparison.html"))


if __name__ == "__main__":
    main()
