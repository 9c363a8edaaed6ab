"""Settings of image generation."""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, ClassVar, Literal

from sdtune.errors import BadInput
from sdtune.settings.bounds import GUIDANCE, SIDE, WEIGHT, Between, Each, Ge, Gt, Le, Multiple, PathText
from sdtune.settings.data import PLACEHOLDER
from sdtune.settings.fields import Derived, HostPath, Settings, Unit, Variable
from sdtune.settings.quality import MOST_SCHEDULED, MOST_STEPS, QUALITIES, Denoising, QualityName, SchedulerName
from sdtune.text import is_blank


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
            default=[
                "{{ training_instance_prompt"
                f" | default('a photo of a ' ~ training_placeholder_token | default('{PLACEHOLDER}'), true) }}}}"
            ],
            value="_image_generation_prompts",
        ),
    ] = field(default_factory=list)
    """Prompts; each is generated with every seed."""
    negative_prompt: str = ""
    """Negative prompt."""
    seeds: Annotated[list[int], Each(Between(0, 2**63 - 1))] = field(default_factory=lambda: [1, 2, 3, 4])
    """Seeds of the initial noise."""
    quality: Annotated[
        QualityName, Variable(meaning=". ".join(f"{k}: {how}" for k, how in QUALITIES.items()) + ".")
    ] = "exact"
    """Preset of the settings whose unset value is that of the quality."""
    num_inference_steps: Annotated[int | None, Ge(1), Le(MOST_SCHEDULED)] = None
    """Denoising steps. Unset: that of the quality."""
    guidance_scale: Annotated[float, GUIDANCE] = 7.5
    """Guidance scale; 1 and below is no guidance, which halves the computation."""
    guidance_start: Annotated[float, Between(0, 1)] = 0.0
    """Share of the denoising steps at which guidance begins; a step without guidance costs half (arXiv 2404.07724)."""
    guidance_stop: Annotated[float | None, Gt(0), Le(1)] = None
    """Share of the denoising steps at which guidance ends. Unset: that of the quality."""
    scheduler: SchedulerName | None = None
    """Scheduler. Unset: that of the quality."""
    cache_interval: Annotated[int | None, Ge(1), Le(1000)] = None
    """Feature caching (arXiv 2312.00858): one of so many evaluations of the UNet is whole, and the others compute its
    outer layers only, with the features of the last whole one; 1 is off. Only for the source openvino. Unset: that of
    the quality."""
    cache_branch: Annotated[int, Ge(0), Le(1000)] = 0
    """Where cached features enter the UNet: 0 at its last layer, which saves most; each number more computes one layer
    more of each half of the UNet."""
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
    lora_weight: Annotated[float | None, WEIGHT] = None
    """Weight of LoRA adapters: 1 as learned, 0 not at all. The OpenVINO model has the weight that it was exported with;
    another one needs the source pipeline. Unset: that of the export, else 1."""
    tiny_autoencoder: HostPath | None = None
    """Folder on the hosts with an AutoencoderTiny in diffusers layout that decodes in place of the VAE, for previews.
    Unset: the VAE."""
    height: Annotated[int | None, Unit("pixels"), Multiple(8), SIDE] = None
    """Height, for a model with dynamic shapes. Unset: the resolution of the training."""
    width: Annotated[int | None, Unit("pixels"), Multiple(8), SIDE] = None
    """Width, for a model with dynamic shapes. Unset: the resolution of the training."""
    processes: Annotated[int, Ge(0), Le(10_000)] = 0
    """Worker processes per host, each bound to its own cores; 0 starts one per NUMA node."""

    def __post_init__(self) -> None:
        """Check the bounds, that there is something to generate, and the guidance interval."""
        super().__post_init__()
        if not self.prompts:
            raise BadInput(f"prompts is empty; give at least one, such as: a photo of a {PLACEHOLDER}")
        if any(is_blank(prompt) for prompt in self.prompts):
            raise BadInput("prompts holds an empty prompt; leave it out")
        if not self.seeds:
            raise BadInput("seeds is empty; give at least one number")
        start, stop = self.guidance_start, self.denoising.guidance_stop
        if not 0 <= start < stop <= 1:
            raise BadInput(
                f"guidance_start and guidance_stop: {start} to {stop} is not an interval within 0 and 1; use, for "
                "example, 0 and 0.6, or a guidance_scale of 1 for no guidance"
            )
        self._check_cache()
        most = MOST_STEPS.get(self.denoising.scheduler)
        if most and self.denoising.num_inference_steps > most:
            raise BadInput(
                f"num_inference_steps: {self.denoising.num_inference_steps} is more than the scheduler "
                f"{self.denoising.scheduler} has, which is {most}; lower it, or take another scheduler"
            )

    def _check_cache(self) -> None:
        interval, steps = self.denoising.cache_interval, self.denoising.num_inference_steps
        whose = "" if self.cache_interval else f" (that of the quality {self.quality})"
        if interval > 1 and self.source != "openvino":
            raise BadInput(
                f"cache_interval: {interval}{whose} needs the source openvino, and this is {self.source}; set it to 1"
            )
        if interval > steps:
            raise BadInput(
                f"cache_interval: {interval}{whose} is above num_inference_steps ({steps}); lower it, or set it to 1"
            )
        if self.cache_branch and interval == 1:
            raise BadInput(
                f"cache_branch: {self.cache_branch} is of no use without cached features; set a cache_interval above 1"
            )

    @property
    def denoising(self) -> Denoising:
        """The preset's values, with those that the job sets itself."""
        own = {f.name: getattr(self, f.name) for f in fields(Denoising)}
        return replace(QUALITIES[self.quality], **{name: value for name, value in own.items() if value is not None})
