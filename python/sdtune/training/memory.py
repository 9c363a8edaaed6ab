"""Whether a batch can fit into the memory of a host, before any network is loaded."""

from pathlib import Path

from sdtune.errors import BadInput
from sdtune.host.memory import available_bytes
from sdtune.models.family import Family
from sdtune.settings import Job
from sdtune.sizes import sizes

_INTERPRETER = 400_000_000  # Python with torch and diffusers loaded


def check_memory(job: Job, family: Family, ranks: int) -> None:
    """Refuse a batch that cannot fit into what this host has free, or what a cgroup leaves of it.

    Args:
        job: the job.
        family: of its model.
        ranks: of this host.

    Raises:
        BadInput: with both figures, and the batch that might fit.
    """
    batch = job.training.train_batch_size
    bf16, resolution = job.training.mixed_precision == "bf16", job.data.resolution
    adapted = job.method != "textual_inversion"
    takes = family.footprint(Path(job.model.path), resolution, bf16=bf16, adapted=adapted)
    fixed, free = ranks * _INTERPRETER + takes.weights, available_bytes()
    if (needed := fixed + ranks * batch * takes.sample) <= free:
        return
    needed_text, free_text = sizes(needed, free)
    if (most := (free - fixed) // (ranks * takes.sample)) > 0:
        remedy = f"take at most {most}, and more gradient_accumulation_steps"
    elif (fewer := (free - takes.weights) // (_INTERPRETER + batch * takes.sample)) > 0:
        remedy = f"take at most {fewer} rank(s) per host (launch_config_ranks_per_node)"
    else:
        remedy = "take a host with more memory"
    raise BadInput(
        f"training.train_batch_size: {batch} sample(s) of {resolution} x {resolution} pixels at once on {ranks} "
        f"rank(s) need at least {needed_text} of memory on this host, and {free_text} are free; {remedy}"
    )
