"""Writing the OpenVINO copy of a finished run: converted, quantized if asked, made static, checked after reload."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig, OVPipelineForText2Image, OVWeightQuantizationConfig
from PIL import Image
from transformers import CLIPTokenizerFast

from sdtune.errors import BadInput
from sdtune.files import replace_folder
from sdtune.host.memory import available_bytes, lifetime_peak_rss_bytes
from sdtune.inference.concept import Concept, check_weight_can_change, read_concept
from sdtune.inference.exported import ExportFacts, StaticShape, digest_folder, requested_shape, write_facts
from sdtune.inference.feature_cache import count_branches
from sdtune.inference.generator import ImageGenerator
from sdtune.inference.images import similarity
from sdtune.inference.memory import PipelineSize, export_bytes, predict_bytes, read_size
from sdtune.inference.openvino import load, make_static, static_shape
from sdtune.inference.tokenizer import export_tokenizer
from sdtune.launch.run_folder import Run
from sdtune.methods.baking import bake
from sdtune.methods.lora_files import load_diffusers
from sdtune.methods.placeholder import token_names
from sdtune.methods.registry import example_prompts
from sdtune.models.pipelines import load_pipeline, load_tokenizer
from sdtune.models.registry import check_folder
from sdtune.settings import Job
from sdtune.sizes import sizes
from standalone.model_folder import layout_of, side_problem, size_multiple


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export reports."""

    shape: StaticShape | None
    """None: dynamic shapes."""
    similarity: tuple[float, float] | None
    """PSNR in dB and mean difference of 255 levels to the float32 pipeline's images; None: not compared."""
    peak_bytes: int
    """Peak memory of the export."""
    model_bytes: int
    """Of the networks in float32, the type that they were exported from."""


def check(job: Job) -> None:
    """Refuse what cannot be exported, before anything is converted.

    Raises:
        BadInput: the run has not learned, the shape does not fit the model, or disk or memory are too small for it.
    """
    run, shape = Run(job.run_dir), requested_shape(job)
    run.require_learned()
    if run.lora.is_file() and job.openvino.lora_weight != 1.0:
        check_weight_can_change(run)
    check_folder(run.pipeline, "run_dir", "train again")
    multiple = size_multiple(run.pipeline)
    for name, side in (("height", shape.height), ("width", shape.width)):
        if problem := side_problem(f"openvino.{name}", side, multiple):
            raise BadInput(problem)
    size = read_size(run.pipeline)
    _check_disk_space(job, size)
    if job.openvino.dynamic_shapes:
        return
    needed = predict_bytes(size, shape.images, shape.height, shape.width, guided=True, bf16=False)
    if needed > (free := available_bytes()):
        needed_text, free_text = sizes(needed, free)
        raise BadInput(
            f"openvino.batch_size: {shape.batch_size} x {shape.num_images_per_prompt} pictures of {shape.width} x "
            f"{shape.height} pixels at once need about {needed_text} of memory, and {free_text} are free; lower "
            f"batch_size or num_images_per_prompt"
        )


def _check_disk_space(job: Job, size: PipelineSize) -> None:
    folder = Path(job.run_dir)
    needed, free = export_bytes(job, size), shutil.disk_usage(folder).free
    if needed > free:
        needed_text, free_text = sizes(needed, free)
        raise BadInput(
            f"openvino: the export will write {needed_text} to {folder}, which has {free_text} free; make room, and "
            f"export again"
        )


@contextmanager
def _weighted_pipeline(job: Job, concept: Concept) -> Iterator[Path]:
    """``pipeline/`` of the run, or a temporary copy of it with its adapters at the weight that the job asks for."""
    run = Run(job.run_dir)
    if not concept.adapted or job.openvino.lora_weight == 1.0:
        yield run.pipeline
        return
    temporary = run.pipeline.with_name(f".{run.pipeline.name}.weighted")
    try:
        # the pipeline has them at weight 1 already
        bake(load_diffusers(run.lora), run.pipeline, temporary, job.openvino.lora_weight - 1.0)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(job: Job, source: Path, target: Path) -> Any:
    """Convert the pipeline ``source`` into ``target``, and load it with dynamic shapes, quantized if asked."""
    o = job.openvino
    dtype = "fp32" if o.weights == "fp32" else "fp16"
    main_export(
        str(source),
        output=target,
        task="text-to-image",
        library_name="diffusers",
        ov_config=OVConfig(dtype=dtype),
        # in float32 whatever the model is stored in: the text encoder holds the learned embeddings, which are float32
        model_loading_kwargs={"torch_dtype": torch.float32},
        local_files_only=True,
    )
    quantization = {
        "int8": lambda: OVWeightQuantizationConfig(bits=8),
        "hybrid": lambda: OVWeightQuantizationConfig(
            bits=8, quant_method="hybrid", dataset=example_prompts(job), num_samples=o.calibration_samples
        ),
    }.get(o.weights)
    return OVPipelineForText2Image.from_pretrained(
        target, compile=False, quantization_config=quantization() if quantization else None
    )


def _fix_in_index(folder: Path) -> None:
    """Record in model_index.json that the shapes are static: from_pretrained takes its default from there."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    index["dynamic_shapes"] = False
    file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _images_of_copy(generator: ImageGenerator, shape: StaticShape, prompts: list[str], total: int) -> list[Image.Image]:
    """``total`` images with seeds 1, 2, ...: the prompts in turn, in calls of the static shape."""
    images: list[Image.Image] = []
    while len(images) < total:
        seeds = [1 + len(images) + i for i in range(shape.images)]
        asked = [prompts[(len(images) + i) % len(prompts)] for i in range(shape.batch_size)]
        images += generator.generate(asked, seeds, per_prompt=shape.num_images_per_prompt)
    return images[:total]


def _images_of_reference(
    generator: ImageGenerator, shape: StaticShape, prompts: list[str], total: int
) -> list[Image.Image]:
    """The images of :func:`_images_of_copy` one at a time, since PyTorch then needs the memory of one only."""
    images: list[Image.Image] = []
    while len(images) < total:
        asked = [prompts[(len(images) + i) % len(prompts)] for i in range(shape.batch_size)]
        each = [prompt for prompt in asked for _ in range(shape.num_images_per_prompt)]
        for prompt in each[: total - len(images)]:
            images += generator.generate([prompt], [1 + len(images)])
    return images


def _compare(job: Job, source: Path, copy: Any, shape: StaticShape) -> tuple[float, float]:
    """Similarity of the copy's images of the concept to those of the float32 pipeline that it was exported from."""
    options: dict[str, Any] = {
        "steps": job.openvino.similarity_steps, "guidance_scale": 4.0, "height": shape.height, "width": shape.width,
    }  # fmt: skip
    total, prompts = job.openvino.similarity_images, example_prompts(job)
    of_copy = _images_of_copy(ImageGenerator(copy, **options), shape, prompts, total)
    reference = ImageGenerator(load_pipeline(source), **options)
    of_reference = _images_of_reference(reference, shape, prompts, total)
    return similarity(of_copy, of_reference)


def _write(job: Job, source: Path, target: Path, concept: Concept) -> ExportFacts:
    """Write the complete copy of ``source`` into ``target``; returns its facts, which are stored in it."""
    run, shape, o = Run(job.run_dir), requested_shape(job), job.openvino
    raw = run.openvino.with_name(f".{run.openvino.name}.raw")
    for folder in (raw, target):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        pipeline = _convert(job, source, raw)
        if not o.dynamic_shapes:
            make_static(pipeline, shape)
        branches = count_branches(pipeline.unet.model)
        pipeline.save_pretrained(target)
        del pipeline
    finally:
        shutil.rmtree(raw, ignore_errors=True)
    tokens = token_names(concept.placeholder, concept.num_vectors) if concept.placeholder else []
    for encoder, name in layout_of(run.pipeline).tokenizers.items():
        # transformers 4 saves the copy with the slow tokenizer, which does not write this file
        load_tokenizer(run.pipeline, encoder).backend_tokenizer.save(str(target / name / "tokenizer.json"))
        export_tokenizer(CLIPTokenizerFast.from_pretrained(target, subfolder=name), tokens, target / name)
    if not o.dynamic_shapes:
        _fix_in_index(target)
    facts = ExportFacts(
        run_name=job.run_name,
        placeholder=concept.placeholder,
        num_vectors=concept.num_vectors,
        resolution=job.data.resolution,
        weights=o.weights,
        shape=None if o.dynamic_shapes else shape,
        step=size_multiple(run.pipeline),
        size=read_size(run.pipeline),
        learned_sha256=concept.sha256,
        model_sha256=digest_folder(target),
        lora_weight=o.lora_weight if concept.adapted else None,
        cache_branches=branches,
    )
    write_facts(target, facts)
    return facts


def export(job: Job) -> Exported:
    """Write ``openvino/`` of the run from its ``pipeline/``, and check it after reload.

    Raises:
        BadInput: as :func:`check`.
        RuntimeError: the reloaded copy has another shape.
    """
    check(job)
    run, shape = Run(job.run_dir), requested_shape(job)
    concept = read_concept(run)
    temporary = run.openvino.with_name(f".{run.openvino.name}.tmp")
    try:
        with _weighted_pipeline(job, concept) as source:
            return _export_into(temporary, job, source, shape, concept)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _export_into(temporary: Path, job: Job, source: Path, shape: StaticShape, concept: Concept) -> Exported:
    """Write the copy of ``source`` into ``temporary``, check it, and move it into place."""
    run, o = Run(job.run_dir), job.openvino
    facts = _write(job, source, temporary, concept)
    loaded = load(temporary, static=not o.dynamic_shapes, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
    if not o.dynamic_shapes and (found := static_shape(loaded)) != shape:
        raise RuntimeError(f"the exported pipeline has the shape {found}, not {shape}")
    peak = lifetime_peak_rss_bytes()
    compared = None
    if o.weights in ("int8", "hybrid") and o.similarity_images:
        if o.dynamic_shapes:
            shape = StaticShape(batch_size=1, num_images_per_prompt=1, height=shape.height, width=shape.width)
        compared = _compare(job, source, loaded, shape)
    replace_folder(temporary, run.openvino)
    return Exported(shape=facts.shape, similarity=compared, peak_bytes=peak, model_bytes=4 * facts.size.parameters)
