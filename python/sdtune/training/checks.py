"""What has to be true of the outside world before a job starts. Everything here reads; nothing is changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizerFast

from sdtune.data.captions import caption_templates
from sdtune.data.pictures import list_pictures
from sdtune.errors import BadInput
from sdtune.files import nearest_folder
from sdtune.launch.run_folder import Run
from sdtune.methods.textual_inversion import add_placeholder, initializer_ids
from sdtune.models.weights import check_cache, default_cache
from sdtune.settings import Job

_WEIGHTS = ("unet", "vae", "text_encoder")


def check_model_folder(path: str | Path) -> Path:
    """The folder of a Stable Diffusion pipeline in diffusers layout with safetensors weights.

    Raises:
        BadInput: names the part that is missing.
    """
    model = Path(path)
    if not model.is_dir():
        raise BadInput(f"model.path: the model folder {model} does not exist")
    for part in (*_WEIGHTS, "tokenizer", "scheduler"):
        if not (model / part).is_dir():
            raise BadInput(f"model.path: {model} has no {part}/; it has to be a pipeline in diffusers layout")
    if not (model / "model_index.json").is_file():
        raise BadInput(f"model.path: {model} has no model_index.json; it has to be a pipeline in diffusers layout")
    for part in _WEIGHTS:
        if not any((model / part).glob("*.safetensors")):
            raise BadInput(f"model.path: {model / part} holds no .safetensors file; other formats are refused")
    return model


def _check_room(job: Job, model: Path) -> None:
    """Refuse a disk that cannot hold what the run will write."""
    needed = 10_000_000  # learned rows, metrics, logs
    if job.training.save_as_full_pipeline:
        needed += sum(p.stat().st_size for part in _WEIGHTS for p in (model / part).glob("*.safetensors"))
    folder = nearest_folder(Path(job.run_dir))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(
            f"run_dir: {folder} has {free / 1e9:.2f} GB free, but the run will write {needed / 1e9:.2f} GB; make room, "
            f"choose another folder, or leave the pipeline out with save_as_full_pipeline: false"
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"model.path: {path} cannot be read ({error}); fetch the model again") from None
    return config


def vae_factor(model: Path) -> int:
    """How many pixels one latent cell spans along a side."""
    return int(2 ** (len(_read_config(model / "vae" / "config.json")["block_out_channels"]) - 1))


def launched_world_size() -> int:
    """How many ranks the launcher started, by the variables that Accelerate goes by, in its order."""
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        if os.environ.get(name):
            return int(os.environ[name])
    return 1


def check_world_size(job: Job) -> None:
    """Refuse a launch with another number of ranks than the job is meant for.

    Raises:
        BadInput: says both numbers.
    """
    launched, asked = launched_world_size(), job.training.world_size
    if asked is not None and launched != asked:
        raise BadInput(
            f"the job asks for {asked} ranks (training.world_size) but {launched} were started; "
            f"start it with launch.sh in the run folder, or change the job"
        )


def check_job(job: Job) -> None:
    """Look at the model, the pictures, the tokens and the run folder.

    Raises:
        BadInput: the first thing that is wrong, and what to do.
    """
    model = check_model_folder(job.model.path)
    factor = vae_factor(model)
    if job.data.resolution % factor:
        lower = job.data.resolution // factor * factor
        raise BadInput(
            f"data.resolution: {job.data.resolution} is not a multiple of the VAE's factor {factor}; "
            f"take {lower or factor} or {lower + factor}"
        )
    prediction = _read_config(model / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise BadInput(f"model.path: its prediction type {prediction!r} is neither epsilon nor v_prediction")
    list_pictures(job.data.path)
    caption_templates(job.data.learnable_property, job.data.templates_file)
    tokenizer = CLIPTokenizerFast.from_pretrained(model, subfolder="tokenizer")
    initializer_ids(tokenizer, job.data.initializer_token, job.data.num_vectors)
    add_placeholder(tokenizer, job.data.placeholder_token, job.data.num_vectors)
    check_cache(Path(job.model.weights_cache) if job.model.weights_cache else default_cache())
    _check_room(job, model)
    Run(job.run_dir).check_writable(overwrite=job.overwrite, resume=job.training.resume_from_checkpoint is not None)
