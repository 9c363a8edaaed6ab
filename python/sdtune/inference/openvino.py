"""The OpenVINO copy of a pipeline: the shape that it was saved with, what is known of it, and loading it unchanged."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdtune.errors import BadInput
from sdtune.files import write_atomically
from sdtune.host.memory import Size
from sdtune.launch.run_folder import Run
from sdtune.settings import Job

if TYPE_CHECKING:
    from optimum.intel import OVStableDiffusionPipeline

_FACTS = "sdtune.json"


@dataclass(frozen=True, kw_only=True)
class StaticShape:
    """What a static pipeline draws in one call."""

    batch_size: int
    num_images_per_prompt: int
    height: int
    width: int

    @property
    def pictures(self) -> int:
        """Pictures of one call."""
        return self.batch_size * self.num_images_per_prompt


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What an exported folder says of itself."""

    run_name: str
    placeholder: str
    num_vectors: int
    resolution: int
    """Pixels that the word was trained at."""
    weights: str
    shape: StaticShape | None
    """None: all shapes are open."""
    step: int
    """Heights and widths have to be multiples of it."""
    size: Size
    learned_sha256: str
    """Of the learned rows that are baked in."""
    model_sha256: str
    """Of the copy's own files."""


def shape_of(job: Job) -> StaticShape:
    """The shape that a job asks for."""
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
    """SHA-256 over names and digests of all files of a folder; without the facts, which hold it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _FACTS)
    lines = [f"{digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_facts(folder: Path, facts: Copy) -> None:
    """Put a copy's facts into its folder."""
    write_atomically(folder / _FACTS, json.dumps(asdict(facts), indent=2) + "\n")


def read_facts(run: Run) -> Copy:
    """What the run's copy says of itself.

    Raises:
        BadInput: there is none, or it is of another run: this one has learned other rows.
    """
    if not (run.openvino / "model_index.json").is_file():
        raise BadInput(
            f"{run.openvino} holds no OpenVINO pipeline; export the run first (export_openvino.py --job job.yaml)"
        )
    try:
        values: dict[str, Any] = json.loads((run.openvino / _FACTS).read_text(encoding="utf-8"))
        shape = values.pop("shape")
        size = Size(**values.pop("size"))
        facts = Copy(**values, size=size, shape=StaticShape(**shape) if shape else None)
    except (OSError, ValueError, TypeError, KeyError):
        raise BadInput(f"{run.openvino} does not say what it was made from ({_FACTS}); export the run again") from None
    # a host that only draws has no rows of its own; it was brought this folder by the one that has
    if run.learned.is_file() and digest(run.learned) != facts.learned_sha256:
        raise BadInput(
            f"{run.openvino} was exported from another run ({facts.run_name}) than the one that it lies in: "
            f"its learned word differs; export the run again"
        )
    return facts


def make_static(pipeline: "OVStableDiffusionPipeline", shape: StaticShape) -> None:
    """Fix every input of every model of the pipeline to ``shape``."""
    pipeline.reshape(shape.batch_size, shape.height, shape.width, shape.num_images_per_prompt)
    # optimum-intel gives the decoder the pictures of one prompt, but the pipeline hands it those of all prompts
    decoder = pipeline.vae_decoder.model
    decoder.reshape({decoder.inputs[0]: [shape.pictures, *decoder.inputs[0].get_partial_shape()[1:]]})


def reshape_rows(pipeline: "OVStableDiffusionPipeline", rows: int) -> None:
    """Give the UNet another number of rows, such as half of those that guidance takes."""
    unet = pipeline.unet.model
    shapes = {port: port.get_partial_shape() for port in unet.inputs}
    for port, shape in shapes.items():
        if port.any_name != "timestep":
            shape[0] = rows
    unet.reshape(shapes)


def load(folder: Path, *, static: bool = True, ov_config: dict[str, Any] | None = None) -> "OVStableDiffusionPipeline":
    """Load a saved copy with the shape that it was saved with; its models are compiled when they are first used.

    Raises:
        BadInput: a model of a copy that should be ``static`` has a dynamic input.
    """
    from optimum.intel import OVStableDiffusionPipeline

    # without dynamic_shapes=False from_pretrained makes every input dynamic again, without a word
    pipeline = OVStableDiffusionPipeline.from_pretrained(
        folder, dynamic_shapes=not static, compile=False, ov_config=ov_config or {}
    )
    for name, model in pipeline.ov_models.items() if static else ():
        for port in model.inputs:
            if port.get_partial_shape().is_dynamic:
                raise BadInput(f"{folder}: the input {port.any_name} of {name} is dynamic; export the run again")
    return pipeline


def static_shape(pipeline: "OVStableDiffusionPipeline") -> StaticShape:
    """The shape that a loaded pipeline was saved with, read off its models' inputs."""
    latents = pipeline.unet.model.input("sample").shape
    prompts = pipeline.text_encoder.model.inputs[0].shape[0]
    # a static UNet always takes the guided and the unguided half together
    return StaticShape(
        batch_size=prompts,
        num_images_per_prompt=latents[0] // 2 // prompts,
        height=latents[2] * pipeline.vae_scale_factor,
        width=latents[3] * pipeline.vae_scale_factor,
    )
