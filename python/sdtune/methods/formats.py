"""Files of learned parameters, as other tools read them."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sdtune.errors import BadInput


def save_rows(path: Path, placeholder: str, rows: torch.Tensor) -> None:
    """Write ``{placeholder: rows}``, float32 [num_vectors, dim], as diffusers reads it; complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({placeholder: rows.detach().float().contiguous().cpu()}, temporary, metadata={"format": "pt"})
    temporary.replace(path)


def load_rows(path: Path) -> tuple[str, torch.Tensor]:
    """Read what :func:`save_rows` wrote: the word and its rows.

    Raises:
        BadInput: the file does not hold exactly one tensor.
    """
    tensors = load_file(path)
    if len(tensors) != 1:
        raise BadInput(f"{path} holds {len(tensors)} tensors; a learned word is one")
    placeholder, rows = next(iter(tensors.items()))
    return placeholder, rows if rows.dim() == 2 else rows[None]
