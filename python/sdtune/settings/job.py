"""The job: everything that a run is asked to do, as keyword-only dataclasses read from one YAML file or from flags.

``launch_config`` renders the file from inventory variables; every entry point reads it and refuses what it does not
know. A check that needs no file system is made here, in ``__post_init__``; the rest is
looked at by :mod:`sdtune.training.checks`.
"""

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from sdtune.errors import BadInput

LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
SCHEDULERS: dict[str, tuple[str, dict[str, str]]] = {
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
"""What a generation job may name: diffusers' class, and what it is told beside the model's own schedule."""
T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BadInput(message)


@dataclass(frozen=True, kw_only=True)
class ModelArgs:
    """The pre-trained pipeline."""

    path: str
    """Folder of a Stable Diffusion pipeline in diffusers layout (``unet/``, ``vae/``, ``text_encoder/``, ...)."""
    weights_cache: str | None = None
    """Folder, on each host, of weights converted to their final type; None: ``~/.cache/sdtune/weights``."""


@dataclass(frozen=True, kw_only=True)
class DataArgs:
    """The concept: its pictures and its word."""

    path: str
    """Folder of the concept's pictures; every file in it has to be one."""
    placeholder_token: str = "<dicoo>"
    """The new word. It must not be in the model's vocabulary yet."""
    initializer_token: str = "toy"
    """The word that the new one starts from: one token, or as many tokens as ``num_vectors``."""
    learnable_property: Literal["object", "style"] = "object"
    """Which caption templates are used."""
    num_vectors: int = 1
    """How many embedding vectors the new word stands for."""
    resolution: int = 512
    """Side of the training pictures in pixels; a multiple of the VAE's factor (8)."""
    center_crop: bool = False
    """Cut the largest centred square out before resizing, rather than squeeze the picture into a square."""
    templates_file: str | None = None
    """Text file of caption templates, one a line with ``{}`` for the word, instead of the built-in ones."""

    def __post_init__(self) -> None:
        _require(
            bool(re.fullmatch(r"\S+", self.placeholder_token)),
            f"data.placeholder_token: {self.placeholder_token!r} has to be one word, such as <dicoo>",
        )
        _require(bool(self.initializer_token.strip()), "data.initializer_token is empty; name a word such as toy")
        _require(self.num_vectors >= 1, f"data.num_vectors: {self.num_vectors} is less than 1")
        _require(self.resolution >= 8, f"data.resolution: {self.resolution} is less than 8")


@dataclass(frozen=True, kw_only=True)
class TrainingArgs:
    """How the word is learned."""

    world_size: int | None = None
    """Ranks that the job is meant for; training refuses to start on any other number. None: as many as are started."""
    backend: Literal["gloo", "mpi", "ccl"] = "gloo"
    """torch.distributed backend between ranks."""
    max_train_steps: int = 200
    """Optimizer steps."""
    train_batch_size: int = 1
    """Pictures per rank and micro-step."""
    gradient_accumulation_steps: int = 1
    """Micro-steps per optimizer step."""
    learning_rate: float = 1e-4
    """AdamW's rate."""
    scale_lr: bool = False
    """Multiply the rate by ranks x batch x accumulation."""
    lr_scheduler: str = "constant"
    """One of diffusers' schedules."""
    lr_warmup_steps: int = 0
    """Optimizer steps of linear warm-up, for the schedules that have one."""
    adam_beta1: float = 0.9
    """AdamW."""
    adam_beta2: float = 0.999
    """AdamW."""
    adam_weight_decay: float = 0.01
    """AdamW; applies to the learned rows only."""
    adam_epsilon: float = 1e-8
    """AdamW."""
    snr_gamma: float | None = None
    """Weigh the loss by min(SNR, gamma) (Hang et al., arXiv 2303.09556); None: no weights."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Type of the frozen weights; the learned rows, the noise and the loss are always float32."""
    attention: Literal["blockwise", "sdpa"] = "blockwise"
    """The UNet's attention: in blocks, in bf16 by our kernel; or by torch's. Same but for rounding."""
    convolution: Literal["auto", "winograd", "direct"] = "auto"
    """The UNet's 3x3 convolutions of large images: with fewer products, or the plain sum. Same but for rounding.

    ``auto`` is direct where the processor's matrix unit (AMX) makes products cheaper than Winograd's transforms.
    """
    checkpointing_steps: int = 500
    """Optimizer steps between checkpoints; 0 writes none."""
    checkpoints_total_limit: int = 3
    """How many checkpoints are kept."""
    resume_from_checkpoint: str | None = None
    """``auto`` (the newest whole checkpoint, or a new start where none is), ``latest``, or a name; None starts anew."""
    resume_reshard: bool = False
    """Let a resumed run have another number of ranks or another batch than its checkpoint."""
    stall_timeout: int = 1800
    """Seconds that a rank waits for the others before it gives up."""
    report_to: Literal["tensorboard", "none"] = "tensorboard"
    """Tracker, beside metrics.jsonl."""
    save_as_full_pipeline: bool = True
    """Write a whole pipeline that knows the word, beside the learned rows."""

    def __post_init__(self) -> None:
        for name in (
            "max_train_steps",
            "train_batch_size",
            "gradient_accumulation_steps",
            "checkpoints_total_limit",
            "stall_timeout",
        ):
            _require(getattr(self, name) >= 1, f"training.{name}: {getattr(self, name)} is less than 1")
        for name in ("adam_beta1", "adam_beta2"):
            _require(0 <= getattr(self, name) < 1, f"training.{name}: {getattr(self, name)} is not between 0 and 1")
        for name in ("adam_weight_decay", "adam_epsilon"):
            _require(getattr(self, name) >= 0, f"training.{name}: {getattr(self, name)} is negative")
        for name in ("lr_warmup_steps", "checkpointing_steps"):
            _require(getattr(self, name) >= 0, f"training.{name}: {getattr(self, name)} is negative")
        _require(
            self.world_size is None or self.world_size >= 1, f"training.world_size: {self.world_size} is less than 1"
        )
        _require(self.learning_rate > 0, f"training.learning_rate: {self.learning_rate} has to be above 0")
        _require(
            self.snr_gamma is None or self.snr_gamma > 0, f"training.snr_gamma: {self.snr_gamma} has to be above 0"
        )
        _require(
            self.lr_scheduler in LR_SCHEDULERS,
            f"training.lr_scheduler: {self.lr_scheduler!r} is not one of {', '.join(LR_SCHEDULERS)}",
        )


@dataclass(frozen=True, kw_only=True)
class ValidationArgs:
    """A loss that can be compared over steps and runs."""

    steps: int = 100
    """Optimizer steps between validations, the first before training; 0 validates never."""
    triples: int = 64
    """Number of fixed (picture, timestep, noise) triples, shared out over the ranks."""
    reference_caption: str | None = None
    """The best description you can write, such as ``yellow rabbit``: the learned word is held against its loss."""
    prompt: str | None = None
    """Draw this prompt into ``validation/`` before the first step and after the last; None draws nothing."""
    prompt_steps: int = 0
    """Optimizer steps between drawings of ``prompt`` while training; 0 draws none between the first and the last."""
    num_images: int = 4
    """Pictures of ``prompt``, every time of the same seeds, shared out over the ranks."""
    guidance_scale: float = 7.5
    """Weight of ``prompt`` against no prompt."""
    early_stopping_patience: int = 0
    """Stop after so many validations in a row without a better loss; 0 never stops early."""
    early_stopping_min_delta: float = 0.0
    """How much lower, as a share of the best loss, a loss has to be to count as better."""

    def __post_init__(self) -> None:
        _require(self.steps >= 0, f"validation.steps: {self.steps} is negative")
        _require(self.triples >= 1, f"validation.triples: {self.triples} is less than 1")
        _require(
            self.early_stopping_patience >= 0,
            f"validation.early_stopping_patience: {self.early_stopping_patience} is negative",
        )
        _require(
            self.early_stopping_patience == 0 or self.steps > 0,
            "validation.early_stopping_patience: without validation (validation.steps: 0) nothing tells when to stop",
        )
        _require(
            0 <= self.early_stopping_min_delta < 1,
            f"validation.early_stopping_min_delta: {self.early_stopping_min_delta} is not between 0 and 1",
        )
        _require(self.prompt_steps >= 0, f"validation.prompt_steps: {self.prompt_steps} is negative")
        _require(self.num_images >= 1, f"validation.num_images: {self.num_images} is less than 1")


@dataclass(frozen=True, kw_only=True)
class OpenVINOArgs:
    """The OpenVINO copy: its shape and its weights."""

    batch_size: int = 1
    """Prompts drawn at once."""
    height: int | None = None
    """Pixels; None: the resolution of training."""
    width: int | None = None
    """Pixels; None: the resolution of training."""
    num_images_per_prompt: int = 1
    """Pictures per prompt drawn at once."""
    dynamic_shapes: bool = False
    """Leave all shapes open instead: any batch and size, slower."""
    weights: Literal["fp16", "fp32", "int8", "hybrid"] = "fp16"
    """Type of the stored weights. ``int8``: weights only; ``hybrid``: the UNet's convolutions compute in int8 too."""
    calibration_samples: int = 100
    """UNet evaluations of the concept's own prompts that ``hybrid`` is calibrated on."""
    similarity_images: int = 2
    """Pictures that an int8 copy is held against the float32 pipeline's by; 0 compares none."""
    similarity_steps: int = 25
    """Their denoising steps."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_images_per_prompt", "calibration_samples", "similarity_steps"):
            _require(getattr(self, name) >= 1, f"openvino.{name}: {getattr(self, name)} is less than 1")
        _require(self.similarity_images >= 0, f"openvino.similarity_images: {self.similarity_images} is negative")
        for name in ("height", "width"):
            side = getattr(self, name)
            _require(side is None or (side > 0 and side % 8 == 0), f"openvino.{name}: {side} is not a multiple of 8")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run."""

    run_name: str
    """Name of the run: letters, digits, dot, dash, underscore."""
    run_dir: str
    """Folder of everything that the run makes."""
    overwrite: bool = False
    """Whether a finished run in ``run_dir`` may be replaced."""
    seed: int = 1
    """Seeds noise, timesteps, picture order and captions."""
    software_stack: Literal["native", "ipex"] = "native"
    """What the environment was built as; ``ipex`` has Intel's extension optimize the UNet."""
    model: ModelArgs
    data: DataArgs
    training: TrainingArgs = field(default_factory=TrainingArgs)
    validation: ValidationArgs = field(default_factory=ValidationArgs)
    openvino: OpenVINOArgs = field(default_factory=OpenVINOArgs)

    def __post_init__(self) -> None:
        _require(
            bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.run_name)),
            f"run_name: {self.run_name!r} may only hold letters, digits, dot, dash and underscore",
        )
        _require(0 <= self.seed < 2**63, f"seed: {self.seed} is not between 0 and 2^63-1")


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """Pictures that are asked of a finished run."""

    run_dir: str
    """The run's folder; pictures go to ``images/`` in it."""
    source: Literal["openvino", "pipeline"] = "openvino"
    """Draw with the OpenVINO copy, or with the PyTorch pipeline."""
    prompts: list[str] = field(default_factory=list)
    """Every prompt is drawn with every seed."""
    negative_prompt: str = ""
    """What the pictures should not show."""
    seeds: list[int] = field(default_factory=lambda: [1])
    """The seeds of the starting noise."""
    num_inference_steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 7.5
    """Weight of the prompt against the negative one; at 1 and below there is no guidance, and half the work."""
    guidance_start: float = 0.0
    """Guide from this share of the steps on; outside of the interval a step costs half (arXiv 2404.07724)."""
    guidance_stop: float = 1.0
    """Guide up to this share of the steps."""
    scheduler: str | None = None
    """One of :data:`SCHEDULERS`; None: the model's own."""
    precision: Literal["f32", "bf16"] = "f32"
    """What the OpenVINO copy computes in. f32 draws the same bits on every host of one kind of CPU."""
    tiny_autoencoder: str | None = None
    """Folder of an AutoencoderTiny in diffusers layout that decodes instead of the model's own: a preview."""
    height: int | None = None
    """Pixels, where the shape is not fixed by the copy; None: the resolution of training."""
    width: int | None = None
    """Pixels, where the shape is not fixed by the copy; None: the resolution of training."""
    processes: int = 0
    """Processes that draw side by side, each bound to cores of its own; 0: one for every memory node (NUMA)."""

    def __post_init__(self) -> None:
        _require(bool(self.prompts), "prompts is empty; give at least one, such as: a photo of a <dicoo>")
        _require(all(p.strip() for p in self.prompts), "prompts holds an empty prompt; leave it out")
        _require(bool(self.seeds), "seeds is empty; give at least one number")
        _require(self.num_inference_steps >= 1, f"num_inference_steps: {self.num_inference_steps} is less than 1")
        _require(self.processes >= 0, f"processes: {self.processes} is negative")
        _require(
            0 <= self.guidance_start < self.guidance_stop <= 1,
            f"guidance_start and guidance_stop: {self.guidance_start} to {self.guidance_stop} is no part of 0 to 1; "
            f"take such as 0 and 0.6, or a guidance_scale of 1 for no guidance at all",
        )
        _require(
            self.scheduler is None or self.scheduler in SCHEDULERS,
            f"scheduler: {self.scheduler!r} is not one of {', '.join(SCHEDULERS)}",
        )
        for name in ("height", "width"):
            side = getattr(self, name)
            _require(side is None or (side > 0 and side % 8 == 0), f"{name}: {side} is not a multiple of 8")


# --- reading -------------------------------------------------------------------------------------------------------


def _convert(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind`` if YAML meant it so; otherwise BadInput that names ``where``."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _convert(value, options[0], where)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value is False and "no" in choices:
            raise BadInput(f'{where}: YAML reads a bare no as false; write it in quotes: "no"')
        if value not in choices:
            raise BadInput(f"{where}: {value!r} is not one of {', '.join(choices)}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise BadInput(f"{where}: {value!r} is not a list")
        return [_convert(v, typing.get_args(kind)[0], f"{where}[{i}]") for i, v in enumerate(value)]
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4, without a dot, as a string
            return float(value)
        except ValueError:
            raise BadInput(f"{where}: {value!r} is not a number") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
        raise BadInput(f"{where}: {value!r} is not {names[kind.__name__]}")
    return value


def build(cls: type[T], mapping: Any, where: str = "") -> T:
    """Make dataclass ``cls`` of a mapping as YAML gives it.

    Raises:
        BadInput: a key is unknown or missing, or a value is of the wrong type or out of range; the message names it.
    """
    if not isinstance(mapping, Mapping):
        raise BadInput(f"{where or 'the job file'}: {mapping!r} is not a mapping of keys to values")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in mapping:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(fields)}"
            raise BadInput(f"unknown job key {prefix}{key}{hint}")
    for name, f in fields.items():
        if name not in mapping and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise BadInput(f"the job lacks {prefix}{name}")
    return cls(**{key: _convert(value, hints[key], f"{prefix}{key}") for key, value in mapping.items()})


def read_yaml(path: str | Path, cls: type[T]) -> T:
    """Read a job file.

    Raises:
        BadInput: the file is missing, no YAML, or not a job.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"job file {path} does not exist")
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"job file {path} is no YAML: {' '.join(str(error).split())}") from None
    return build(cls, mapping)


# --- flags: the names that users of diffusers' textual_inversion.py know -------------------------------------------

_FLAGS: dict[str, tuple[str, str]] = {
    "run_name": ("", "run_name"),
    "output_dir": ("", "run_dir"),
    "overwrite": ("", "overwrite"),
    "seed": ("", "seed"),
    "software_stack": ("", "software_stack"),
    "pretrained_model_name_or_path": ("model", "path"),
    "weights_cache": ("model", "weights_cache"),
    "train_data_dir": ("data", "path"),
    "num_vectors": ("data", "num_vectors"),
    "validation_prompt": ("validation", "prompt"),
    "validation_prompt_steps": ("validation", "prompt_steps"),
    "num_validation_images": ("validation", "num_images"),
    "validation_guidance_scale": ("validation", "guidance_scale"),
    "validation_steps": ("validation", "steps"),
    "validation_triples": ("validation", "triples"),
    "reference_caption": ("validation", "reference_caption"),
    "early_stopping_patience": ("validation", "early_stopping_patience"),
    "early_stopping_min_delta": ("validation", "early_stopping_min_delta"),
    **{f.name: ("data", f.name) for f in dataclasses.fields(DataArgs) if f.name not in ("path", "num_vectors")},
    **{f.name: ("training", f.name) for f in dataclasses.fields(TrainingArgs)},
}
# Said at the moment of starting, not part of what the run is: leave to overwrite, and how to go on after a failure.
_AT_START = ("overwrite", "resume_from_checkpoint", "resume_reshard", "world_size", "gradient_accumulation_steps")
_SECTIONS: dict[str, type] = {
    "": Job,
    "model": ModelArgs,
    "data": DataArgs,
    "training": TrainingArgs,
    "validation": ValidationArgs,
}


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a flag for each setting of a training job, with its documentation and default."""
    for flag, (section, name) in _FLAGS.items():
        cls = _SECTIONS[section]
        kind = typing.get_type_hints(cls)[name]
        if kind is bool:
            parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=None)
            continue
        options = [k for k in typing.get_args(kind) if k is not type(None)]
        is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
        scalar = options[0] if is_union else kind
        parser.add_argument(
            f"--{flag}",
            type=scalar if scalar in (int, float) else str,
            default=None,
            choices=typing.get_args(kind) if typing.get_origin(kind) is Literal else None,
        )


def job_from_flags(flags: argparse.Namespace) -> Job:
    """The job that the flags describe; the run is named after its output folder unless ``--run_name`` is given.

    Raises:
        BadInput: a needed flag is missing, or a value is out of range.
    """
    given = {flag: getattr(flags, flag) for flag in _FLAGS if getattr(flags, flag) is not None}
    for needed in ("pretrained_model_name_or_path", "train_data_dir", "output_dir"):
        if needed not in given:
            raise BadInput(f"--{needed} is needed, or --job with a job file")
    given.setdefault("run_name", Path(given["output_dir"]).resolve().name)
    mapping: dict[str, Any] = {}
    for flag, value in given.items():
        section, name = _FLAGS[flag]
        (mapping.setdefault(section, {}) if section else mapping)[name] = value
    return build(Job, mapping)


def to_mapping(job: Job | GenerationJob) -> dict[str, Any]:
    """The job as plain dictionaries, as YAML would write it."""
    return dataclasses.asdict(job)


def training_job(argv: Sequence[str] | None, description: str) -> tuple[Job, argparse.Namespace]:
    """Parse the command line of ``textual_inversion.py``: ``--job FILE``, or flags, and ``--check``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help=f"job file (YAML); excludes all flags but --check, --{', --'.join(_AT_START)}")
    parser.add_argument("--check", action="store_true", help="look at the job and its inputs, then stop")
    add_job_flags(parser)
    flags = parser.parse_args(argv)
    if flags.job is None:
        return job_from_flags(flags), flags
    given = {flag: getattr(flags, flag) for flag in _FLAGS if getattr(flags, flag) is not None}
    also = [f"--{flag}" for flag in given if flag not in _AT_START]
    if also:
        raise BadInput(f"--job and {also[0]} exclude each other: change the value in the job file")
    job = read_yaml(flags.job, Job)
    overwrite = given.pop("overwrite", job.overwrite)
    return dataclasses.replace(job, overwrite=overwrite, training=dataclasses.replace(job.training, **given)), flags
