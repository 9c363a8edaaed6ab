"""Settings of image generation."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from sdtune.errors import BadInput
from sdtune.settings.bounds import Between, Each, Ge, Multiple, PathText
from sdtune.settings.data import PLACEHOLDER
from sdtune.settings.fields import Derived, HostPath, Settings, Unit, Variable

SchedulerName = Literal["pndm", "ddim", "dpmsolver++", "unipc", "euler", "euler_ancestral", "heun", "lcm"]
"""Schedulers by the names that a generation job uses; :mod:`sdtune.inference.generator` has their classes."""


@dataclass(frozen=True, kw_only=True)
class GenerationJob(Settings):
    """Pictures to generate with a finished run."""

    role: ClassVar[str] = "image_generation"
    prefix: ClassVar[str] = "image_generation_"

    run_dir: Annotated[str, PathText(), Derived("cluster_run_dir")]
    """Folder of the run; the pictures go to ``images/`` in it."""
    source: Literal["openvino", "pipeline", "model"] = "openvino"
    """Model that generates: openvino (the exported model, on all hosts), pipeline (the PyTorch pipeline, on the primary
    only), or model (the base model in PyTorch, on all hosts, to compare with)."""
    model: Annotated[HostPath | None, Derived("cluster_model_path")] = None
    """Folder of the base model, for the source model."""
    prompts: Annotated[
        list[str],
        Variable(
            default=[f"a photo of a {{{{ training_placeholder_token | default('{PLACEHOLDER}') }}}}"],
            value="_image_generation_prompts",
        ),
    ] = field(default_factory=list)
    """Prompts; each is generated with every seed."""
    negative_prompt: str = ""
    """Negative prompt."""
    seeds: Annotated[list[int], Each(Between(0, 2**63 - 1))] = field(default_factory=lambda: [1, 2, 3, 4])
    """Seeds of the initial noise."""
    num_inference_steps: Annotated[int, Ge(1)] = 25
    """Denoising steps."""
    guidance_scale: float = 7.5
    """Guidance scale; 1 and below is no guidance, which halves the computation."""
    guidance_start: float = 0.0
    """Share of the denoising steps at which guidance begins; a step without guidance costs half (arXiv 2404.07724)."""
    guidance_stop: float = 1.0
    """Share of the denoising steps at which guidance ends."""
    scheduler: SchedulerName | None = None
    """Scheduler. Unset: the model's own."""
    precision: Annotated[
        Literal["f32", "bf16"],
        Variable(
            default="auto",
            choices=("auto",),
            value="_image_generation_precision",
            meaning="auto: bf16 if every host that generates has instructions for it.",
        ),
    ] = "f32"
    """Type that the OpenVINO model, or the base model, computes in. With f32, hosts of the same CPU model generate
    identical pictures."""
    lora_weight: float | None = None
    """Weight of LoRA adapters, 1 as learned. The OpenVINO model has the weight that it was exported with; another one
    needs the source pipeline. Unset: that of the export, else 1."""
    tiny_autoencoder: HostPath | None = None
    """Folder on the hosts with an AutoencoderTiny in diffusers layout that decodes in place of the VAE, for previews.
    Unset: the VAE."""
    height: Annotated[int | None, Unit("pixels"), Multiple(8)] = None
    """Height, for a model with dynamic shapes. Unset: the resolution of the training."""
    width: Annotated[int | None, Unit("pixels"), Multiple(8)] = None
    """Width, for a model with dynamic shapes. Unset: the resolution of the training."""
    processes: Annotated[int, Ge(0)] = 0
    """Worker processes per host, each bound to its own cores; 0 starts one per NUMA node."""

    def __post_init__(self) -> None:
        """Check the bounds, that there is something to generate, and the guidance interval."""
        super().__post_init__()
        if not self.prompts:
            raise BadInput(f"prompts is empty; give at least one, such as: a photo of a {PLACEHOLDER}")
        if not all(prompt.strip() for prompt in self.prompts):
            raise BadInput("prompts holds an empty prompt; leave it out")
        if not self.seeds:
            raise BadInput("seeds is empty; give at least one number")
        start, stop = self.guidance_start, self.guidance_stop
        if not 0 <= start < stop <= 1:
            raise BadInput(
                f"guidance_start and guidance_stop: {start} to {stop} is not an interval within 0 and 1; use, for "
                "example, 0 and 0.6, or a guidance_scale of 1 for no guidance"
            )
