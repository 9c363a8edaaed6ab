"""Generating the batches of a plan in this process: loading the pipeline, and one batch after the other."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdtune.inference.images import encode_png
from sdtune.inference.openvino import load, set_unet_batch
from sdtune.inference.plan import Plan
from sdtune.launch.run_folder import Run
from sdtune.methods.placeholder import expand_placeholder
from sdtune.settings import GenerationJob

if TYPE_CHECKING:
    from sdtune.inference.generator import ImageGenerator


def bind_to_cores(cores: Sequence[int]) -> None:
    """Bind this process to ``cores``, before it loads a library that counts them."""
    # with KMP_AFFINITY, which training sets, OpenVINO uses one core only
    os.environ.pop("KMP_AFFINITY", None)
    os.sched_setaffinity(0, cores)


def precision_of(job: GenerationJob) -> str:
    """Type that a job's model computes in; a trained PyTorch pipeline is the reference, in f32 always."""
    return "f32" if job.source == "pipeline" else job.precision


def load_generator(job: GenerationJob, plan: Plan, threads: int) -> "ImageGenerator":
    """Load the pipeline. What OpenVINO compiles, it compiles at the first batch."""
    from sdtune.inference.feature_cache import FeatureCache  # torch, diffusers and OpenVINO take seconds to import
    from sdtune.inference.generator import ImageGenerator

    how, cache = job.denoising, None
    interval = (job.guidance_start, how.guidance_stop)
    if plan.exported is not None:
        static = plan.exported.shape is not None
        config = {
            "INFERENCE_PRECISION_HINT": job.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        pipeline = load(Run(job.run_dir).openvino, static=static, ov_config=config)
        # where some or all steps are without guidance, one half at a time: see GuidanceInterval
        if static and (job.guidance_scale <= 1 or interval != (0.0, 1.0)):
            set_unet_batch(pipeline, plan.shape.images)
        if how.cache_interval > 1:
            cache = FeatureCache(pipeline.unet, how.cache_interval, job.cache_branch)
    else:
        import torch

        from sdtune.models.pipelines import load_pipeline

        torch.set_num_threads(threads)
        run = Run(job.run_dir)
        folder = job.model if job.source == "model" else run.pipeline
        dtype = torch.bfloat16 if precision_of(job) == "bf16" else torch.float32
        pipeline = load_pipeline(Path(str(folder)), dtype)
        if plan.lora_weight not in (None, 1.0):
            from sdtune.methods.baking import change_weight

            change_weight(pipeline, run, plan.lora_weight - 1.0)  # the pipeline has weight 1
    return ImageGenerator(
        pipeline,
        steps=how.num_inference_steps,
        guidance_scale=job.guidance_scale,
        interval=interval,
        cache=cache,
        scheduler=how.scheduler,
        tiny_autoencoder=job.tiny_autoencoder,
        height=plan.shape.height,
        width=plan.shape.width,
    )


def draw_batch(generator: "ImageGenerator", job: GenerationJob, plan: Plan, number: int) -> dict[str, bytes]:
    """Generate one batch of the plan.

    Returns:
        {file name: PNG}, each with metadata that say how it was generated.
    """
    batch, per_prompt, how = plan.batches[number], plan.shape.num_images_per_prompt, job.denoising
    prompts = [expand_placeholder(r.prompt, plan.placeholder, plan.num_vectors) for r in batch[::per_prompt]]
    images = generator.generate(prompts, [r.seed for r in batch], job.negative_prompt, per_prompt)
    files = {}
    for request, image in dict(zip(batch, images, strict=True)).items():
        metadata = {
            "prompt": request.prompt,
            "negative_prompt": job.negative_prompt,
            "seed": request.seed,
            "source": job.source,
            "num_inference_steps": how.num_inference_steps,
            "guidance_scale": job.guidance_scale,
            "guidance_interval": [job.guidance_start, how.guidance_stop],
            **({"cache": [how.cache_interval, job.cache_branch]} if how.cache_interval > 1 else {}),
            "scheduler": generator.scheduler,
            "precision": precision_of(job),
            "weights": plan.exported.weights if plan.exported else {"f32": "fp32"}.get(precision_of(job), "bf16"),
            **({} if plan.lora_weight is None else {"lora_weight": plan.lora_weight}),
            "decoder": "tiny" if job.tiny_autoencoder else "full",
            "model_sha256": plan.model_sha256,
            "software": "sdtune",
        }
        files[plan.name(request)] = encode_png(image, metadata)
    return files
