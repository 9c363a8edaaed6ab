"""Class pictures of prior preservation: a folder of the user's, or drawn by the base model on all ranks.

Drawn ones are kept, in a folder that is named by a hash of everything that they depend on.
"""

import hashlib
import json
from io import BytesIO
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from sdtune.data.pictures import list_pictures
from sdtune.errors import BadInput
from sdtune.files import hold_lock
from sdtune.models.family import Networks
from sdtune.models.registry import family_of
from sdtune.models.weights import cache_folder
from sdtune.settings import Job
from sdtune.training.drawing import seeds_of_rank

_GUIDANCE = 7.5


def check_class_pictures(job: Job) -> None:
    """Check the user's folder of class pictures.

    Raises:
        BadInput: it holds fewer than the job asks for.
    """
    if job.prior.class_path is not None:
        has = len(list_pictures(job.prior.class_path))
        if has < job.prior.num_class_images:
            raise BadInput(
                f"prior.class_path: {job.prior.class_path} holds {has} pictures, and {job.prior.num_class_images} are "
                f"asked for (prior.num_class_images); add pictures, or ask for at most {has}"
            )


def class_folder(job: Job) -> Path:
    """The folder on this host that holds the class pictures, or will hold those that the model draws."""
    if job.prior.class_path is not None:
        return Path(job.prior.class_path)
    model = family_of(job.model.path).fingerprint(Path(job.model.path))
    made_of = [model, job.prior.class_prompt, job.data.resolution, job.training.mixed_precision, _GUIDANCE]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    return cache_folder(job) / "class-pictures" / digest


def class_pictures(job: Job, networks: Networks, accelerator: Accelerator) -> list[Path]:
    """The class pictures on this host; every rank calls this, and draws its share of those that are missing.

    Picture n is drawn with the seed n + 1, so more pictures than before need only the new ones.

    Args:
        job: the job.
        networks: that still compute what the base model computes.
        accelerator: of this run.

    Returns:
        As many as the job asks for; none without prior preservation.
    """
    if not job.prior.preservation:
        return []
    folder, count = class_folder(job), job.prior.num_class_images
    if job.prior.class_path is not None:
        return list_pictures(folder)[:count]
    files = [folder / f"{number:05d}.png" for number in range(count)]
    found = [file.read_bytes() if file.is_file() else b"" for file in files]
    missing = _missing([hashlib.sha256(png).hexdigest() if png else "" for png in found])
    rank, ranks = accelerator.process_index, accelerator.num_processes
    mine = [missing[seed - 1] for seed in seeds_of_rank(len(missing), rank, ranks)]
    drawn: list[tuple[int, bytes]] = []
    if mine:
        seeds = [number + 1 for number in mine]
        pictures = networks.draw(str(job.prior.class_prompt), seeds, job.data.resolution, _GUIDANCE)
        drawn = [(number, _png(picture)) for number, picture in zip(mine, pictures, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    everything = gather_object(drawn)
    with hold_lock(folder / ".lock"):  # ranks of one host write the same files
        for number, png in everything:
            temporary = folder / f".{number}.tmp"
            temporary.write_bytes(png)
            temporary.replace(files[number])
    return files


def _missing(digests: list[str]) -> list[int]:
    """Numbers of the pictures that a rank lacks, or that are not the same on all; every rank calls this.

    Args:
        digests: of each picture on this host, empty where there is none.
    """
    of_ranks = gather_object([digests])
    return [number for number, each in enumerate(zip(*of_ranks, strict=True)) if "" in each or len(set(each)) > 1]


def _png(picture: Image.Image) -> bytes:
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
