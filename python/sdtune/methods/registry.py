"""All fine-tuning methods, by name."""

from sdtune.methods.method import Method
from sdtune.methods.textual_inversion import TextualInversion
from sdtune.settings import Job

METHODS: dict[str, type[Method]] = {"textual_inversion": TextualInversion}


def method_of(job: Job) -> type[Method]:
    """The method that the job asks for. Jobs cannot choose yet: there is one."""
    return METHODS["textual_inversion"]
