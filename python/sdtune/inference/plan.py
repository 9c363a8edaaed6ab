"""The plan of a generation job: every prompt with every seed, cut into batches, checked before any network is loaded.

The batches are made once, and each is generated as a whole, by whichever process takes it: the other images of a batch
can change the last bits of an image. So the same images come out however many processes and hosts there are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdtune.errors import BadInput
from sdtune.host import memory
from sdtune.host.numa import split_cores
from sdtune.host.processor import has_bf16
from sdtune.inference.concept import check_weight_can_change, read_concept
from sdtune.inference.exported import ExportFacts, StaticShape, digest_folder, read_facts
from sdtune.inference.memory import PipelineSize, predict_bytes, read_size
from sdtune.inference.prompts import added_tokens, check_tokens, cut_off
from sdtune.launch.run_folder import Run
from sdtune.models.folder import read_config
from sdtune.settings import GenerationJob
from sdtune.sizes import sizes
from standalone.model_folder import side_problem, size_multiple

if TYPE_CHECKING:
    from sdtune.models.family import Family


@dataclass(frozen=True)
class Request:
    """One image that is asked for."""

    prompt: str
    """As in the job, with the placeholder token."""
    seed: int
    """Of the starting noise."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a generation job asks for, and how this host does it."""

    job: dict[str, Any]
    """The job, as nested mappings."""
    shape: StaticShape
    """Of one batch."""
    placeholder: str
    """The placeholder token that the run learned; empty where it learned none."""
    num_vectors: int
    """Embedding vectors of the placeholder token."""
    lora_weight: float | None
    """Weight of the run's LoRA adapters; None: it has none."""
    exported: ExportFacts | None
    """None: the PyTorch pipeline generates."""
    model_sha256: str
    """Digest of the files that generate."""
    requests: list[Request]
    """In the order of the files' numbers."""
    batches: list[list[Request]]
    """What is generated in one call each."""
    cores: list[list[int]]
    """The cores of each process on this host."""
    warnings: list[str]
    """For the user."""

    def name(self, request: Request) -> str:
        """The image's file name."""
        return f"{self.requests.index(request):04d}-seed{request.seed}.png"

    def names(self, batch: int) -> list[str]:
        """The file names of a batch."""
        return sorted({self.name(request) for request in self.batches[batch]})

    @property
    def fingerprint(self) -> str:
        """Digest of what is generated and from which weights: hosts with one fingerprint generate the same images."""
        return hashlib.sha256(json.dumps([self.job, self.model_sha256, asdict(self.shape)]).encode()).hexdigest()


def make_batches(requests: Sequence[Request], shape: StaticShape) -> list[list[Request]]:
    """Group requests into calls of a static pipeline.

    Each call holds ``batch_size`` groups of ``num_images_per_prompt`` requests with one prompt. A group or a call that
    is not full is padded with its last request, whose extra images are dropped.
    """
    per_prompt, groups = shape.num_images_per_prompt, []
    for prompt in dict.fromkeys(r.prompt for r in requests):
        same = [r for r in requests if r.prompt == prompt]
        for i in range(0, len(same), per_prompt):
            group = same[i : i + per_prompt]
            groups.append(group + [group[-1]] * (per_prompt - len(group)))
    result = []
    for i in range(0, len(groups), shape.batch_size):
        batch = groups[i : i + shape.batch_size]
        batch += [batch[-1]] * (shape.batch_size - len(batch))
        result.append([request for group in batch for request in group])
    return result


def _lora_weight(job: GenerationJob, exported: ExportFacts | None, adapted: bool) -> float | None:
    """The weight of LoRA adapters; None where the run has none."""
    has = exported.lora_weight if exported is not None else 1.0 if adapted else None
    if job.lora_weight is None or job.lora_weight == has:
        return has
    if has is None:
        which = "the base model has" if job.source == "model" else "this run has learned"
        raise BadInput(f"lora_weight: {job.lora_weight} weighs nothing, {which} no LoRA; leave it out")
    if exported is not None:
        raise BadInput(
            f"lora_weight: the OpenVINO copy of this run has its LoRA at {has}, not {job.lora_weight}; export again "
            f"(openvino.lora_weight: {job.lora_weight}; Ansible: openvino_export_lora_weight), or take the source "
            f"pipeline (Ansible: image_generation_source)"
        )
    return job.lora_weight


def _shape(job: GenerationJob, exported: ExportFacts | None, resolution: int, multiple: int) -> StaticShape:
    """The shape of a batch: that of a static copy, else one image of the size that the job asks for."""
    if exported is not None and exported.shape is not None:
        for name in ("height", "width"):
            asked, has = getattr(job, name), getattr(exported.shape, name)
            if asked not in (None, has):
                raise BadInput(
                    f"{name}: the OpenVINO copy of this run is static, with a {name} of {has}, not {asked}; leave it "
                    f"out, or export again (openvino.{name}: {asked}, or dynamic_shapes: true)"
                )
        return exported.shape
    shape = StaticShape(
        batch_size=1, num_images_per_prompt=1, height=job.height or resolution, width=job.width or resolution
    )
    for name in ("height", "width"):
        if problem := side_problem(name, getattr(shape, name), multiple):
            raise BadInput(problem)
    return shape


def _check_memory(job: GenerationJob, size: PipelineSize, shape: StaticShape, processes: int) -> None:
    """Refuse what does not fit into this host's memory, by prediction."""
    bf16 = job.precision == "bf16" and job.source != "pipeline"
    one = predict_bytes(size, shape.images, shape.height, shape.width, guided=job.guidance_scale > 1, bf16=bf16)
    free = memory.available_bytes()
    if processes * one > free:
        needed_text, free_text = sizes(processes * one, free)
        raise BadInput(
            f"{processes} process(es) that draw {shape.images} picture(s) of {shape.width} x {shape.height} pixels "
            f"at once need about {needed_text} of memory, and {free_text} are free; lower processes, or export the run "
            f"again with a smaller openvino.batch_size"
        )


def _check_precision(job: GenerationJob) -> None:
    if job.precision == "bf16" and job.source != "pipeline" and not has_bf16():
        raise BadInput("precision: this CPU has no bf16 instructions (AVX-512 or AMX); take f32")


def _check_tiny_autoencoder(job: GenerationJob, unet: Mapping[str, Any]) -> None:
    if job.tiny_autoencoder:
        from sdtune.inference.tiny_autoencoder import check_tiny  # torch takes seconds to import

        check_tiny(job.tiny_autoencoder, unet.get("in_channels", 4))


def _check_cache(job: GenerationJob, exported: ExportFacts | None) -> None:
    """Refuse a branch that the UNet does not have. Only an OpenVINO copy gets here with a cache."""
    interval = job.denoising.cache_interval
    if interval == 1 or exported is None:
        return
    if exported.cache_branches == 0:
        raise BadInput(
            f"cache_interval: {interval} needs a UNet whose features can be cached, and the OpenVINO copy of this run "
            f"has none: an earlier version exported it; export the run again (export_openvino.py --job job.yaml), or "
            f"set it to 1"
        )
    if job.cache_branch >= exported.cache_branches:
        raise BadInput(
            f"cache_branch: {job.cache_branch} is none of the {exported.cache_branches} branches of this UNet; take a "
            f"number from 0 to {exported.cache_branches - 1}"
        )


def _warn_of_scheduler(job: GenerationJob, unet: Mapping[str, Any]) -> list[str]:
    if job.denoising.scheduler != "lcm" or unet.get("time_cond_proj_dim"):
        return []
    return [
        "scheduler lcm is for models that were distilled for it; this UNet has no embedding of the guidance scale, so "
        "unless such weights were merged into it the pictures will be poor"
    ]


def _warn_of_guidance(job: GenerationJob) -> list[str]:
    start, stop, steps = job.guidance_start, job.denoising.guidance_stop, job.denoising.num_inference_steps
    if job.guidance_scale <= 1 or any(start <= step / steps < stop for step in range(steps)):
        return []
    return [
        f"guidance_start and guidance_stop: none of {steps} steps begins between {start} and {stop} of them, so the "
        f"pictures get no guidance, as with a guidance_scale of 1"
    ]


def _check_folder(folder: Path, setting: str, remedy: str) -> "Family":
    from sdtune.models.registry import check_folder  # torch takes seconds to import

    return check_folder(folder, setting, remedy)


def make_plan(job: GenerationJob, *, check_memory: bool = True) -> Plan:
    """Check the job against the run and this host, and cut the work into batches. Loads no network.

    Args:
        job: what is asked for.
        check_memory: False in a worker: its parent checked before this host's other workers took memory.

    Raises:
        BadInput: the first thing that is wrong, and how to correct it.
    """
    run = Run(job.run_dir)
    if job.source == "openvino":
        exported = read_facts(run)
        placeholder, vectors, resolution = exported.placeholder, exported.num_vectors, exported.resolution
        size, model_sha256, folder = exported.size, exported.model_sha256, run.openvino
        weight = _lora_weight(job, exported, adapted=False)
    elif job.source == "model":
        if job.model is None:
            raise BadInput("model: the source model needs the folder of the base model")
        exported, folder = None, Path(job.model)
        family = _check_folder(folder, "model", "fetch the model again")
        placeholder, vectors, weight = "", 0, _lora_weight(job, None, adapted=False)
        resolution = job.height or int(run.facts()["resolution"])
        size, model_sha256 = read_size(folder), family.fingerprint(folder)
    else:
        exported, concept = None, read_concept(run)
        _check_folder(run.pipeline, "source", "train again, or take another source")
        placeholder, vectors = concept.placeholder, concept.num_vectors
        resolution, weight = int(run.facts()["resolution"]), _lora_weight(job, None, concept.adapted)
        if weight not in (None, 1.0):
            check_weight_can_change(run)
        size, model_sha256, folder = read_size(run.pipeline), digest_folder(run.pipeline), run.pipeline
    warnings = check_tokens(job, placeholder, added_tokens(folder))
    warnings += cut_off(job, folder, placeholder, vectors)
    shape = _shape(job, exported, resolution, exported.step if exported else size_multiple(folder))
    _check_precision(job)
    _check_cache(job, exported)
    unet = read_config(folder / "unet" / "config.json")
    _check_tiny_autoencoder(job, unet)
    warnings += _warn_of_scheduler(job, unet) + _warn_of_guidance(job)
    requests = list(dict.fromkeys(Request(prompt, seed) for prompt in job.prompts for seed in job.seeds))
    batches = make_batches(requests, shape)
    cores = split_cores(job.processes)[: len(batches)]
    if check_memory:
        _check_memory(job, size, shape, len(cores))
    return Plan(
        job=asdict(job),
        shape=shape,
        placeholder=placeholder,
        num_vectors=vectors,
        lora_weight=weight,
        exported=exported,
        model_sha256=model_sha256,
        requests=requests,
        batches=batches,
        cores=cores,
        warnings=warnings,
    )
