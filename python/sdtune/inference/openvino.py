"""OpenVINO at run time: loading an exported pipeline with the shapes that it was saved with, and changing them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdtune.errors import BadInput
from sdtune.inference.exported import StaticShape

if TYPE_CHECKING:
    from optimum.intel import OVDiffusionPipeline


def make_static(pipeline: "OVDiffusionPipeline", shape: StaticShape) -> None:
    """Fix every input of every model of the pipeline to ``shape``."""
    pipeline.reshape(shape.batch_size, shape.height, shape.width, shape.num_images_per_prompt)
    # optimum-intel fixes the decoder to the images of one prompt, but the pipeline gives it those of all prompts
    decoder = pipeline.vae_decoder.model
    decoder.reshape({decoder.inputs[0]: [shape.images, *decoder.inputs[0].get_partial_shape()[1:]]})


def set_unet_batch(pipeline: "OVDiffusionPipeline", batch: int) -> None:
    """Fix the UNet's batch size, such as to half of what guidance needs."""
    unet = pipeline.unet.model
    shapes = {port: port.get_partial_shape() for port in unet.inputs}
    for port, shape in shapes.items():
        if port.any_name != "timestep":
            shape[0] = batch
    unet.reshape(shapes)


def load(folder: Path, *, static: bool = True, ov_config: dict[str, Any] | None = None) -> "OVDiffusionPipeline":
    """Load an exported pipeline with the shapes that it was saved with. OpenVINO compiles each model at its first use.

    Raises:
        BadInput: ``static`` is asked for, and an input of a model is dynamic.
    """
    from optimum.intel import OVPipelineForText2Image

    # without dynamic_shapes=False from_pretrained makes every input dynamic again, and does not say so
    pipeline: OVDiffusionPipeline = OVPipelineForText2Image.from_pretrained(
        folder, dynamic_shapes=not static, compile=False, ov_config=ov_config or {}
    )
    for name, model in pipeline.ov_models.items() if static else ():
        for port in model.inputs:
            if port.get_partial_shape().is_dynamic:
                raise BadInput(f"{folder}: the input {port.any_name} of {name} is dynamic; export the run again")
    return pipeline


def static_shape(pipeline: "OVDiffusionPipeline") -> StaticShape:
    """The static shape of a loaded pipeline, from its models' inputs."""
    latents = pipeline.unet.model.input("sample").shape
    prompts = pipeline.text_encoder.model.inputs[0].shape[0]
    # a static UNet always takes the conditional and the unconditional half together
    return StaticShape(
        batch_size=prompts,
        num_images_per_prompt=latents[0] // 2 // prompts,
        height=latents[2] * pipeline.vae_scale_factor,
        width=latents[3] * pipeline.vae_scale_factor,
    )
