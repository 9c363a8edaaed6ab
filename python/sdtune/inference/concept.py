"""What a run has learned, as the export and the generation of images need to know it: a word, adapters, or both."""

import hashlib
from dataclasses import dataclass

from sdtune.launch.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What a run has learned."""

    placeholder: str
    """The placeholder token; empty where no token was learned."""
    num_vectors: int
    """Embedding vectors of the placeholder token."""
    adapted: bool
    """Whether LoRA adapters were learned, which may be used at any weight."""
    sha256: str
    """Digest of the files of learned parameters."""


def read_concept(run: Run) -> Concept:
    """Read what a run has learned.

    Raises:
        BadInput: the run has learned nothing yet, or has no ``pipeline/``.
    """
    run.require_learned()
    placeholder, num_vectors = "", 0
    if run.learned.is_file():
        from sdtune.methods.formats import load_embeddings  # torch takes seconds to import

        placeholder, embeddings = load_embeddings(run.learned)
        num_vectors = len(next(iter(embeddings.values())))
    return Concept(
        placeholder=placeholder, num_vectors=num_vectors, adapted=run.lora.is_file(), sha256=digest_learned(run)
    )


def check_weight_can_change(run: Run) -> None:
    """Check that the adapters of a run can be added to its ``pipeline/`` once more, at another weight.

    Raises:
        BadInput: they are of another base model.
    """
    from sdtune.methods.lora_files import check_base_model  # torch takes seconds to import

    check_base_model(run.lora, run.pipeline)


def digest_learned(run: Run) -> str:
    """SHA-256 over the contents of all files of learned parameters; of one file, its own SHA-256."""
    digest = hashlib.sha256()
    for file in (run.learned, run.lora):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
