"""Model folders: pipelines in diffusers layout on disk, what must be in them, and how two of them are told apart."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput, shown
from standalone.model_folder import ModelError


@contextmanager
def refusing(model: Path, what: str, setting: str = "model.path") -> Iterator[None]:
    """Turn whatever a library raises on a file of a model folder into one line.

    Args:
        model: the folder.
        what: what is wrong, such as "holds a tokenizer in tokenizer/ that cannot be read".
        setting: that names the folder.

    Raises:
        BadInput: with the reason.
    """
    try:
        yield
    except (BadInput, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except ModelError as error:
        raise BadInput(f"{setting}: {model} {error}") from None
    except BaseException as error:  # noqa: BLE001 - libraries in Rust panic with an exception of their own
        why = " ".join(str(error).split()) or "no reason given"
        raise BadInput(
            f"{setting}: {model} {what} ({type(error).__name__}: {shown(why, 200)}); fetch the model again"
        ) from None


def read_config(path: Path, setting: str = "model.path") -> dict[str, Any]:
    """Read a JSON file of a model folder.

    Raises:
        BadInput: the file is missing or holds no JSON object; the message begins with ``setting``.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")  # noqa: TRY004, TRY301 - as json does
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{setting}: {path} cannot be read ({error}); fetch the model again") from None
    return config


def tokens_read(model: Path, tokenizer: str, encoder: str) -> int:
    """How many tokens of a text are read, those of its begin and end included.

    The text encoder has so many positions. The tokenizer may name fewer; one that does not know says nothing, or 10^30.

    Args:
        model: the folder.
        tokenizer: subfolder of the tokenizer.
        encoder: subfolder of its text encoder.

    Raises:
        BadInput: a configuration cannot be read.
    """
    positions: int = read_config(model / encoder / "config.json").get("max_position_embeddings", 77)
    limit = read_config(model / tokenizer / "tokenizer_config.json").get("model_max_length", positions)
    return int(min(positions, limit))


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
