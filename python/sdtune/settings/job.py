"""The training job: all settings of one run. Its sections are declared in the modules of the same names."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from sdtune.errors import BadInput
from sdtune.settings.bounds import Between, PathText, Pattern
from sdtune.settings.data import DataArgs
from sdtune.settings.fields import Derived, Flag, Settings, Variable, sections_of, settings_of
from sdtune.settings.lora import LoraArgs
from sdtune.settings.model import ModelArgs
from sdtune.settings.openvino import OpenVINOArgs
from sdtune.settings.prior import PriorArgs
from sdtune.settings.training import TrainingArgs
from sdtune.settings.validation import ValidationArgs

RUN_NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""Run names that are allowed; the run folder has the same name. The playbooks check the same expression."""
RUN_NAME_RULE = "1 to 100 letters (A to Z), digits, dots, dashes and underscores, beginning with a letter or a digit"
"""The same in words, for messages here and in the playbooks."""


MethodName = Literal["textual_inversion", "lora", "pivotal"]
"""The fine-tuning methods; :mod:`sdtune.methods.registry` has their classes."""


@dataclass(frozen=True, kw_only=True)
class Job(Settings):
    """The run."""

    section: ClassVar[str] = ""

    run_name: Annotated[
        str,
        Pattern(RUN_NAME_PATTERN, f"be {RUN_NAME_RULE}"),
        Derived("launch_config_run_name"),
    ]
    """Name of the run."""
    method: Annotated[MethodName, Flag("training_method")] = "textual_inversion"
    """What is learned: the embeddings of a new token (textual_inversion), matrices of low rank beside the projections
    of the UNet (lora, also known as DreamBooth with LoRA), or both together (pivotal)."""
    run_dir: Annotated[str, PathText(), Flag("output_dir"), Derived("launch_config_run_dir")]
    """Run folder, which receives everything that the run produces."""
    overwrite: Annotated[bool, Variable(in_job=False)] = False
    """Replace a finished run in the run folder."""
    seed: Annotated[int, Between(0, 2**63 - 1)] = 1
    """Seed of noise, timesteps, picture order and captions."""
    software_stack: Annotated[Literal["native", "ipex"], Derived("cluster_software_stack")] = "native"
    """Software stack of the environment; with ipex, Intel's extension for PyTorch optimizes the UNet."""
    model: ModelArgs
    """Base model."""
    data: DataArgs
    """Concept."""
    training: TrainingArgs = field(default_factory=TrainingArgs)
    """Optimization."""
    lora: LoraArgs = field(default_factory=LoraArgs)
    """LoRA adapters."""
    prior: PriorArgs = field(default_factory=PriorArgs)
    """Prior preservation."""
    validation: ValidationArgs = field(default_factory=ValidationArgs)
    """Validation."""
    openvino: OpenVINOArgs = field(default_factory=OpenVINOArgs)
    """OpenVINO export."""

    def __post_init__(self) -> None:
        """Check the bounds, and that no setting of another method was changed."""
        super().__post_init__()
        for cls in sections_of(type(self))[1:]:
            section = getattr(self, cls.section)
            for setting in settings_of(cls):
                if problem := setting.misplaced(getattr(section, setting.name), self.method):
                    raise BadInput(f"{setting.key}: {problem}")
