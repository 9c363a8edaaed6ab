"""What the OpenVINO copy of a run says about itself: its shape, its size, and the run that it was exported from."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput
from sdtune.files import write_atomically
from sdtune.inference.concept import digest_learned
from sdtune.inference.memory import PipelineSize
from sdtune.launch.run_folder import Run
from sdtune.settings import Job

_FACTS = "sdtune.json"


@dataclass(frozen=True, kw_only=True)
class StaticShape:
    """What a static pipeline generates in one call."""

    batch_size: int
    """Prompts of a call."""
    num_images_per_prompt: int
    """Images of each prompt."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""

    @property
    def images(self) -> int:
        """Images of one call."""
        return self.batch_size * self.num_images_per_prompt


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What is stored beside an exported pipeline. The field names are the keys of the file."""

    run_name: str
    """Of the run that was exported."""
    placeholder: str
    """The placeholder token that the run learned; empty where it learned none."""
    num_vectors: int
    """Embedding vectors of the placeholder token."""
    resolution: int
    """Pixels that the run was trained at."""
    weights: str
    """Type of the stored weights, as in the job."""
    shape: StaticShape | None
    """None: dynamic shapes."""
    step: int
    """Heights and widths have to be multiples of it."""
    size: PipelineSize
    """Of the pipeline that was exported."""
    learned_sha256: str
    """Digest of the learned parameters that are baked in."""
    model_sha256: str
    """Digest of the exported files."""
    lora_weight: float | None = None
    """Weight that LoRA adapters are baked in at; None: the run has none."""
    cache_branches: int = 0
    """Branches of the UNet that feature caching can use; 0 also where an earlier version exported it."""


def requested_shape(job: Job) -> StaticShape:
    """The static shape that a job asks for."""
    o = job.openvino
    return StaticShape(
        batch_size=o.batch_size,
        num_images_per_prompt=o.num_images_per_prompt,
        height=o.height or job.data.resolution,
        width=o.width or job.data.resolution,
    )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> str:
    """SHA-256 over names and digests of all files of a folder, except the facts file, which holds this digest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _FACTS)
    lines = [f"{digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_facts(folder: Path, facts: ExportFacts) -> None:
    """Store the facts in the exported folder."""
    write_atomically(folder / _FACTS, json.dumps(asdict(facts), indent=2) + "\n")


def read_facts(run: Run) -> ExportFacts:
    """Read the facts of the run's OpenVINO copy.

    Raises:
        BadInput: the run has no copy, or the copy is of another run, with other learned embeddings.
    """
    if not (run.openvino / "model_index.json").is_file():
        raise BadInput(
            f"{run.openvino} holds no OpenVINO pipeline; export the run first (export_openvino.py --job job.yaml)"
        )
    try:
        values: dict[str, Any] = json.loads((run.openvino / _FACTS).read_text(encoding="utf-8"))
        shape = values.pop("shape")
        size = PipelineSize(**values.pop("size"))
        facts = ExportFacts(**values, size=size, shape=StaticShape(**shape) if shape else None)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise BadInput(f"{run.openvino} does not say what it was made from ({_FACTS}); export the run again") from None
    # a host that only generates images has no learned parameters to compare; the primary copied this folder to it
    here = run.learned.is_file() or run.lora.is_file()
    if here and digest_learned(run) != facts.learned_sha256:
        raise BadInput(
            f"{run.openvino} was exported from another run ({facts.run_name}): its learned parameters differ from "
            f"those in this run folder; export the run again"
        )
    return facts
