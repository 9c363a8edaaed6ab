"""The OpenVINO copy of a pipeline, with a static shape that is checked after it was saved and loaded again."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from optimum.intel import OVStableDiffusionPipeline

from sdtune.config import Job
from sdtune.errors import BadInput
from sdtune.runs import Run, replace_folder


@dataclass(frozen=True, kw_only=True)
class StaticShape:
    """What a static pipeline draws in one call."""

    batch_size: int
    num_images_per_prompt: int
    height: int
    width: int


def shape_of(job: Job) -> StaticShape:
    """The shape that a job asks for."""
    o = job.openvino
    return StaticShape(
        batch_size=o.batch_size,
        num_images_per_prompt=o.num_images_per_prompt,
        height=o.height or job.data.resolution,
        width=o.width or job.data.resolution,
    )


def make_static(pipeline: OVStableDiffusionPipeline, shape: StaticShape) -> None:
    """Fix every input of every model of the pipeline to ``shape``."""
    pipeline.reshape(shape.batch_size, shape.height, shape.width, shape.num_images_per_prompt)
    # optimum-intel gives the decoder the pictures of one prompt, but the pipeline hands it those of all prompts
    decoder = pipeline.vae_decoder.model
    batch = shape.batch_size * shape.num_images_per_prompt
    decoder.reshape({decoder.inputs[0]: [batch, *decoder.inputs[0].get_partial_shape()[1:]]})


def load_static(folder: Path, *, compile_models: bool = True) -> OVStableDiffusionPipeline:
    """Load a saved copy with the shape that it was saved with.

    Raises:
        BadInput: the folder is missing, or one of its models has a dynamic input.
    """
    if not (folder / "model_index.json").is_file():
        raise BadInput(f"{folder} holds no OpenVINO pipeline; export the run first (export_openvino.py --job job.yaml)")
    # without dynamic_shapes=False from_pretrained makes every input dynamic again, without a word
    pipeline = OVStableDiffusionPipeline.from_pretrained(folder, dynamic_shapes=False, compile=False)
    for name, model in pipeline.ov_models.items():
        for port in model.inputs:
            if port.get_partial_shape().is_dynamic:
                raise BadInput(f"{folder}: the input {port.any_name} of {name} is dynamic; export the run again")
    if compile_models:
        pipeline.compile()
    return pipeline


def static_shape(pipeline: OVStableDiffusionPipeline) -> StaticShape:
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


def export(job: Job) -> StaticShape:
    """Write ``openvino/`` of the run from its ``pipeline/``, check it, and return its shape.

    Raises:
        BadInput: the run has not finished training.
        RuntimeError: the reloaded copy has another shape.
    """
    run, asked = Run(job.run_dir), shape_of(job)
    run.require_learned()
    pipeline = OVStableDiffusionPipeline.from_pretrained(run.pipeline, export=True, compile=False)
    make_static(pipeline, asked)
    temporary = run.openvino.with_name(f".{run.openvino.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    del pipeline
    got = static_shape(load_static(temporary, compile_models=False))
    if got != asked:
        raise RuntimeError(f"the exported pipeline has the shape {got}, not {asked}")
    replace_folder(temporary, run.openvino)
    return got
