"""Class pictures of prior preservation on every host: a folder of the user's, or what the base model has drawn.

``train.yml`` lets the worker pool draw them before the training, see :mod:`sdtune.inference.class_pictures`. Those that
no host has, as without Ansible, the ranks draw.
"""

import hashlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from sdtune.data.picture_warnings import picture_warnings
from sdtune.data.pictures import list_pictures, picture_problems
from sdtune.errors import BadInput, refuse
from sdtune.files import hold_lock
from sdtune.inference.class_pictures import GUIDANCE_SCALE, class_files
from sdtune.models.family import Networks
from sdtune.settings import Job

_AT_A_TIME = 16
"""Pictures that one exchange between hosts holds, which bounds its memory."""


def check_class_pictures(job: Job) -> None:
    """Check the user's folder of class pictures.

    Raises:
        BadInput: it holds fewer than the job asks for, or one that cannot be read, or is that of the training pictures.
    """
    if job.prior.class_path is None:
        return
    if Path(job.prior.class_path).resolve() == Path(job.data.path).resolve():
        raise BadInput(
            f"prior.class_path: {job.prior.class_path} is the folder of the training pictures too (data.path), so "
            f"nothing would keep the model as it was; take pictures of other things of the same class"
        )
    pictures, asked = list_pictures(job.prior.class_path, "prior.class_path"), job.prior.num_class_images
    if len(pictures) < asked:
        raise BadInput(
            f"prior.class_path: {job.prior.class_path} holds {len(pictures)} pictures, and {asked} are asked for "
            f"(prior.num_class_images); add pictures, or ask for at most {len(pictures)}"
        )
    refuse("prior.class_path", picture_problems(pictures))


def class_picture_warnings(job: Job) -> list[str]:
    """What a user should know of class pictures of his own, which can be used."""
    if job.prior.class_path is None:
        return []
    pictures = list_pictures(job.prior.class_path)[: job.prior.num_class_images]
    return [f"prior.class_path: {warning}" for warning in picture_warnings(pictures, job.data)]


def class_pictures(job: Job, networks: Networks, accelerator: Accelerator) -> list[Path]:
    """The class pictures on this host, the same on all. Every rank calls this.

    Args:
        job: the job.
        networks: that still compute what the base model computes.
        accelerator: of this run.

    Returns:
        As many as the job asks for; none without prior preservation.
    """
    if not job.prior.preservation:
        return []
    if job.prior.class_path is not None:
        return list_pictures(job.prior.class_path)[: job.prior.num_class_images]
    files = class_files(job)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    missing = [number for number, digests in _on_all_ranks(files).items() if not any(digests)]
    rank, ranks = accelerator.process_index, accelerator.num_processes
    for first in range(0, len(missing), ranks):  # one picture a rank at a time, so that no rank waits long for another
        for number in missing[first : first + ranks][rank : rank + 1]:
            _draw(files[number], number + 1, job, networks)
        accelerator.wait_for_everyone()
    _share(files, rank)
    return files


def _draw(file: Path, seed: int, job: Job, networks: Networks) -> None:
    [picture] = networks.draw(str(job.prior.class_prompt), [seed], job.data.resolution, GUIDANCE_SCALE)
    stream = BytesIO()
    picture.save(stream, "PNG")
    _write(file, stream.getvalue())


def _write(file: Path, content: bytes) -> None:
    """Write a file, completely or not at all; other ranks of this host may write the same one."""
    with hold_lock(file.parent / ".lock"):
        temporary = file.with_name(f".{file.name}")
        temporary.write_bytes(content)
        temporary.replace(file)


def _on_all_ranks(files: Sequence[Path]) -> Mapping[int, list[str]]:
    """{number of the picture: its digest on each rank, empty where that host lacks it}. Every rank calls this."""
    own = [hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "" for file in files]
    of_ranks = gather_object([own])
    return {number: list(digests) for number, digests in enumerate(zip(*of_ranks, strict=True))}


def _share(files: Sequence[Path], rank: int) -> None:
    """Give every host the pictures of the first rank that has them. Every rank calls this."""
    providers, wanted = {}, {}
    for number, digests in _on_all_ranks(files).items():
        if len(set(digests)) > 1:
            providers[number] = next(k for k, digest in enumerate(digests) if digest)
            wanted[number] = digests[rank] != digests[providers[number]]
    numbers = list(providers)
    for first in range(0, len(numbers), _AT_A_TIME):
        part = numbers[first : first + _AT_A_TIME]
        sent = gather_object([(number, files[number].read_bytes()) for number in part if providers[number] == rank])
        for number, content in sent:
            if wanted[number]:
                _write(files[number], content)
