"""All fine-tuning methods, by name."""

from sdtune.methods.lora import Lora
from sdtune.methods.method import Method
from sdtune.methods.pivotal import Pivotal
from sdtune.methods.textual_inversion import TextualInversion
from sdtune.settings import Job

METHODS: dict[str, type[Method]] = {"textual_inversion": TextualInversion, "lora": Lora, "pivotal": Pivotal}


def method_of(job: Job) -> type[Method]:
    """The method that the job asks for."""
    return METHODS[job.method]


def example_prompts(job: Job) -> list[str]:
    """See :meth:`Method.example_prompts`, of the job's method."""
    return method_of(job).example_prompts(job)
