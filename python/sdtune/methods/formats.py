"""Files of learned parameters, in the formats that other tools read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sdtune.errors import BadInput
from standalone.model_folder import ModelError, read_header

_PLACEHOLDER = "placeholder_token"
"""Key in the metadata of a file, which other tools pass over."""


def save_embeddings(path: Path, placeholder: str, embeddings: Mapping[str, torch.Tensor]) -> None:
    """Write the embeddings of a placeholder token in float32, completely or not at all.

    Args:
        path: the safetensors file.
        placeholder: the placeholder token.
        embeddings: {name: [num_vectors, dim]}: of one text encoder under any name, or of several, by
            :attr:`sdtune.models.family.TextEncoder.name_in_files`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    tensors = {name: tensor.detach().float().contiguous().cpu() for name, tensor in embeddings.items()}
    save_file(tensors, temporary, metadata={"format": "pt", _PLACEHOLDER: placeholder})
    temporary.replace(path)


def load_embeddings(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Read ``learned_embeds.safetensors``.

    Returns:
        The placeholder token and its embeddings {name: [num_vectors, dim]}, one for each text encoder.

    Raises:
        BadInput: the file is damaged, or does not hold the embeddings of one token.
    """
    try:
        read_header(path)
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            placeholder = (file.metadata() or {}).get(_PLACEHOLDER)
        tensors = {name: t if t.dim() == 2 else t[None] for name, t in load_file(path).items()}
    except (ModelError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read ({' '.join(str(error).split())}); train the run again") from None
    if placeholder is None and len(tensors) == 1:  # as diffusers' own script writes it, named by the token
        placeholder = next(iter(tensors))
    if placeholder is None or len({len(tensor) for tensor in tensors.values()}) != 1:
        raise BadInput(f"{path} holds {len(tensors)} tensors, which are not the embeddings of one token")
    return placeholder, tensors
