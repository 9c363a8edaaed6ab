"""The one place where a setting is declared: name, type, default, bounds and meaning.

To change a default, change the field in the module of its section (``training.py``, ``data.py``, ...) and run
``make settings``, which writes the roles' defaults and argument_specs and ``docs/settings.md``. Nothing here imports
torch: the control node, which has none, imports this package too.
"""

from sdtune.settings.data import DataArgs
from sdtune.settings.flags import add_job_flags, job_from_flags, training_job
from sdtune.settings.generation import GenerationJob
from sdtune.settings.job import RUN_NAME_PATTERN, Job
from sdtune.settings.load import build, read_yaml, to_mapping
from sdtune.settings.lora import LoraArgs
from sdtune.settings.model import ModelArgs
from sdtune.settings.openvino import OpenVINOArgs
from sdtune.settings.prior import PriorArgs
from sdtune.settings.quality import QUALITIES, SchedulerName
from sdtune.settings.training import TrainingArgs
from sdtune.settings.validation import ValidationArgs

__all__ = [
    "QUALITIES",
    "RUN_NAME_PATTERN",
    "DataArgs",
    "GenerationJob",
    "Job",
    "LoraArgs",
    "ModelArgs",
    "OpenVINOArgs",
    "PriorArgs",
    "SchedulerName",
    "TrainingArgs",
    "ValidationArgs",
    "add_job_flags",
    "build",
    "job_from_flags",
    "read_yaml",
    "to_mapping",
    "training_job",
]
