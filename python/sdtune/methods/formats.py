"""Files of learned parameters, in the formats that other tools read."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sdtune.errors import BadInput
from standalone.model_folder import ModelError, read_header


def save_embeddings(path: Path, placeholder: str, embeddings: torch.Tensor) -> None:
    """Write ``{placeholder: embeddings}``, float32 [num_vectors, dim], as diffusers reads it; completely or not at all.

    Args:
        path: the safetensors file.
        placeholder: the placeholder token.
        embeddings: [num_vectors, dim].
    """
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({placeholder: embeddings.detach().float().contiguous().cpu()}, temporary, metadata={"format": "pt"})
    temporary.replace(path)


def load_embeddings(path: Path) -> tuple[str, torch.Tensor]:
    """Read what :func:`save_embeddings` wrote.

    Returns:
        The placeholder token and its embeddings [num_vectors, dim].

    Raises:
        BadInput: the file is damaged, or does not hold exactly one tensor.
    """
    try:
        read_header(path)
        tensors = load_file(path)
    except (ModelError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read ({' '.join(str(error).split())}); train the run again") from None
    if len(tensors) != 1:
        raise BadInput(f"{path} holds {len(tensors)} tensors; learned embeddings are one tensor")
    placeholder, embeddings = next(iter(tensors.items()))
    return placeholder, embeddings if embeddings.dim() == 2 else embeddings[None]
