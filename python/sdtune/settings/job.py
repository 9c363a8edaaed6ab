"""The training job: all settings of one run. Its sections are declared in the modules of the same names."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from sdtune.settings.bounds import Between, PathText, Pattern
from sdtune.settings.data import DataArgs
from sdtune.settings.fields import Derived, Flag, Settings, Variable
from sdtune.settings.model import ModelArgs
from sdtune.settings.openvino import OpenVINOArgs
from sdtune.settings.training import TrainingArgs
from sdtune.settings.validation import ValidationArgs

RUN_NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""Run names that are allowed; the run folder has the same name. The playbooks check the same expression."""
RUN_NAME_RULE = "1 to 100 letters (A to Z), digits, dots, dashes and underscores, beginning with a letter or a digit"
"""The same in words, for messages here and in the playbooks."""


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
    validation: ValidationArgs = field(default_factory=ValidationArgs)
    """Validation."""
    openvino: OpenVINOArgs = field(default_factory=OpenVINOArgs)
    """OpenVINO export."""
