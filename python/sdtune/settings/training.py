"""Settings of the optimization and of its checkpoints."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sdtune.settings.bounds import STEPS, Between, Ge, Gt, Le
from sdtune.settings.data import NEW_TOKEN
from sdtune.settings.fields import Derived, Formerly, Settings, Unit, Variable

LRScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


@dataclass(frozen=True, kw_only=True)
class TrainingArgs(Settings):
    """The optimization, its precision and its checkpoints."""

    section: ClassVar[str] = "training"

    world_size: Annotated[int | None, Ge(1), Le(100_000), Derived("_launch_config_world_size")] = None
    """Number of ranks. Training refuses to start with another number. Unset: as many as the launcher starts."""
    backend: Annotated[Literal["gloo", "mpi", "ccl"], Derived("launch_config_backend")] = "gloo"
    """torch.distributed backend."""

    max_train_steps: Annotated[int, Ge(1), STEPS] = 200
    """Optimizer steps."""
    train_batch_size: Annotated[int, Ge(1), Le(1_000_000)] = 1
    """Samples per rank and micro-step. The global batch is this x ranks x gradient_accumulation_steps."""
    gradient_accumulation_steps: Annotated[int, Ge(1), Le(1_000_000)] = 1
    """Micro-steps per optimizer step."""
    learning_rate: Annotated[float, Gt(0), Le(1000), NEW_TOKEN] = 5e-3
    """Learning rate of AdamW for the embeddings of the new token, before scale_lr and the schedule."""
    scale_lr: bool = False
    """Multiply the learning rate by the global batch."""
    lr_scheduler: LRScheduler = "constant"
    """Schedule of the learning rate, by its name in diffusers."""
    lr_warmup_steps: Annotated[int, Ge(0), STEPS] = 0
    """Optimizer steps of linear warm-up, for the schedules that have one."""
    adam_beta1: Annotated[float, Between(0, 1, below=True)] = 0.9
    """Decay rate of AdamW's first moment."""
    adam_beta2: Annotated[float, Between(0, 1, below=True)] = 0.999
    """Decay rate of AdamW's second moment."""
    adam_weight_decay: Annotated[float, Ge(0), Le(1000)] = 0.01
    """Weight decay of AdamW; it applies to the learned parameters only."""
    adam_epsilon: Annotated[float, Ge(0), Le(1)] = 1e-8
    """Epsilon of AdamW."""
    embedding_norm: Annotated[Literal["free", "fixed"], NEW_TOKEN] = "free"
    """fixed: the embeddings of the new token keep the norm that they start with, and learn their direction only (arXiv
    2512.13672), which helps in prompts with many other words."""
    timestep_sampling: Literal["uniform", "spread", "measured"] = "uniform"
    """How samples get their timesteps: uniform, each at random; spread, each far from those of the samples before it;
    or measured, also more often where the gradient is large, which is measured before the first step. The expected loss
    is the same."""
    noise_pairs: bool = False
    """Every second sample repeats the one before it with the opposite noise."""
    snr_gamma: Annotated[float | None, Gt(0), Le(1_000_000)] = None
    """Gamma of min-SNR loss weights (arXiv 2303.09556), 5 in the paper. Unset: the loss is not weighted."""
    mixed_precision: Annotated[
        Literal["bf16", "no"],
        Variable(
            default="auto",
            choices=("auto",),
            value="_launch_config_mixed_precision",
            meaning="auto: bf16 if every host has instructions for it, which make it faster, else no; without them "
            "bf16 is far slower.",
        ),
    ] = "bf16"
    """Type of the frozen weights; ``no`` is float32. Learned parameters, noise and loss are always float32."""
    attention: Literal["blockwise", "sdpa"] = "blockwise"
    """Attention of the UNet: blockwise, in bf16 by our compiled kernels, which are faster on CPUs; or
    torch's scaled_dot_product_attention, and no compiled kernels, for normalizations neither. The results are equal up
    to rounding."""
    convolution: Literal["auto", "winograd", "direct"] = "auto"
    """3x3 convolutions of the UNet on large images: Winograd's algorithm, with fewer multiplications, or the direct
    sum. The results are equal up to rounding. auto: direct on processors with AMX, else winograd."""

    checkpointing_steps: Annotated[int, Ge(0), STEPS] = 100
    """Optimizer steps between checkpoints, which are a few kilobytes each; 0 writes none."""
    checkpoints_total_limit: Annotated[int, Ge(1), Le(1_000_000)] = 3
    """Checkpoints that are kept."""
    resume_from_checkpoint: str | None = None
    """Checkpoint to resume from: auto (the newest complete one, or a new start if there is none), latest (the newest;
    there has to be one), or a name such as step-000500. Unset: start anew."""
    resume_reshard: bool = False
    """Allow that the number of ranks or the batch size differs from the checkpoint's."""
    collective_timeout: Annotated[
        int,
        Unit("seconds"),
        Ge(1),
        Le(100_000_000),
        Formerly("stall_timeout"),
        # the supervisor notices a hung run first, and says more about it
        Derived("[training_stall_timeout | int, training_start_timeout | int] | max + 60"),
    ] = 1800
    """How long a rank waits for the others in a collective operation before it fails."""
    report_to: Literal["tensorboard", "none"] = "tensorboard"
    """Tracker that is written beside metrics.jsonl."""
    save_as_full_pipeline: bool = True
    """Save the whole pipeline with the learned token beside the learned embeddings; the OpenVINO export needs it."""
