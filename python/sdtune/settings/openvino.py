"""Settings of the OpenVINO export."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sdtune.settings.bounds import SIDE, WEIGHT, Ge, Le, Multiple
from sdtune.settings.fields import Formerly, Settings, Unit
from sdtune.settings.lora import ADAPTED
from sdtune.settings.quality import MOST_SCHEDULED


@dataclass(frozen=True, kw_only=True)
class OpenVINOArgs(Settings):
    """The OpenVINO model: its static shape and the type of its weights."""

    section: ClassVar[str] = "openvino"
    role: ClassVar[str] = "openvino_export"
    prefix: ClassVar[str] = "openvino_export_"

    batch_size: Annotated[int, Ge(1), Le(10_000)] = 1
    """Prompts in a batch."""
    height: Annotated[int | None, Unit("pixels"), Multiple(8), SIDE] = None
    """Height of the pictures. Unset: the resolution of the training."""
    width: Annotated[int | None, Unit("pixels"), Multiple(8), SIDE] = None
    """Width of the pictures. Unset: the resolution of the training."""
    num_images_per_prompt: Annotated[int, Ge(1), Le(10_000)] = 1
    """Pictures per prompt of a batch."""
    dynamic_shapes: bool = False
    """Export with dynamic shapes: any batch size and any picture size, but slower."""
    weights: Literal["fp16", "fp32", "int8", "hybrid"] = "fp16"
    """Type of the stored weights. int8: compressed weights only; hybrid: the UNet's convolutions are computed in int8
    too."""
    lora_weight: Annotated[float, WEIGHT, ADAPTED] = 1.0
    """Weight at which LoRA adapters are baked in: 1 as learned, 0 not at all."""
    calibration_samples: Annotated[int, Ge(1), Le(1_000_000)] = 100
    """UNet evaluations, of prompts with the learned token, that hybrid is calibrated on."""
    similarity_images: Annotated[int, Ge(0), Le(10_000), Formerly("likeness_images")] = 2
    """Pictures that an int8 or hybrid model and the float32 pipeline both generate to measure their similarity;
    0 measures nothing."""
    similarity_steps: Annotated[int, Ge(1), Le(MOST_SCHEDULED), Formerly("likeness_steps")] = 25
    """Denoising steps of these pictures."""
