"""Model folders: pipelines in diffusers layout on disk, what must be in them, and how two of them are told apart."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder.

    Raises:
        BadInput: the file is missing or not valid JSON.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"model.path: {path} cannot be read ({error}); fetch the model again") from None
    return config


def weight_files(model: Path, parts: Sequence[str]) -> list[Path]:
    """All safetensors files in the subfolders ``parts`` of ``model``, sorted by path."""
    return sorted(path for part in parts for path in (model / part).glob("*.safetensors"))


def model_fingerprint(model: Path, parts: Sequence[str]) -> str:
    """A hash of each weight file's size, and of 64 KiB at each of 64 evenly spaced offsets in it.

    It takes milliseconds, and is different for models whose weights differ.
    """
    digest = hashlib.sha256()
    for path in weight_files(model, parts):
        size, chunk, chunks = path.stat().st_size, 65_536, 64
        digest.update(f"{path.relative_to(model)} {size}".encode())
        with path.open("rb") as f:
            for i in range(chunks):
                f.seek(max(0, size - chunk) * i // (chunks - 1))
                digest.update(f.read(chunk))
    return digest.hexdigest()[:16]
