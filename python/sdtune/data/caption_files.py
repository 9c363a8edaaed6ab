"""Captions beside the pictures: ``NAME.txt`` for ``NAME.jpg``, or ``metadata.jsonl`` as image folders of the hub."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

METADATA = "metadata.jsonl"
_SUFFIX = ".txt"


def is_caption_file(path: Path) -> bool:
    """Whether a file of a picture folder holds captions, by its name."""
    return path.name == METADATA or path.suffix.lower() == _SUFFIX


def caption_files(folder: Path) -> list[Path]:
    """The caption files of a picture folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and is_caption_file(p))


def _read_text(path: Path, problems: list[str]) -> str:
    """A text file in UTF-8; where it is not, that is a problem and the text is empty."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read as UTF-8 ({error})")
        return ""


class _Twice(Exception):
    """A key is there twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of an object of JSON, each key once: else one of the values would silently not count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def _from_metadata(path: Path, names: set[str], problems: list[str]) -> dict[str, tuple[str, str]]:
    """{picture: (caption, where it stands)} of a ``metadata.jsonl``; ``names`` are the pictures that exist."""
    found: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(_read_text(path, problems).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_once)
            name, text = row["file_name"], row["text"]
        except _Twice as twice:
            problems.append(f"{where} has the key {twice} twice")
            continue
        except (ValueError, KeyError, TypeError, RecursionError):
            problems.append(f'{where} is not like {{"file_name": "a.jpg", "text": "a photo of ..."}}')
            continue
        if not isinstance(name, str) or not isinstance(text, str):
            problems.append(f"{where}: file_name and text have to be text")
        elif name not in names:
            problems.append(f"{where} names {name}, which is not there")
        elif name in found:
            problems.append(f"{where} names {name} a second time")
        else:
            found[name] = text, where
    return found


def _from_text_files(
    files: Sequence[Path], pictures: Sequence[Path], problems: list[str]
) -> dict[str, tuple[str, str]]:
    """{picture: (caption, file)} of ``NAME.txt``; a file without its picture is a problem."""
    found: dict[str, tuple[str, str]] = {}
    for file in files:
        named = [picture.name for picture in pictures if picture.stem == file.stem]
        if not named:
            problems.append(f"{file} has no picture of its name")
        found |= dict.fromkeys(named, (" ".join(_read_text(file, problems).split()), str(file)))
    return found


def find_captions(
    folder: str | Path, pictures: Sequence[Path], problem: Callable[[str], str | None] = lambda _: None
) -> tuple[list[str], list[str]]:
    """The caption of each picture, and what is wrong with them; no captions where the folder has no caption file.

    Args:
        folder: the picture folder.
        pictures: all pictures in it.
        problem: what is wrong with a caption, or None.

    Returns:
        A caption for each picture, empty where it has none; and all problems: captions that are missing, empty or
        wrong, and files and lines that belong to no picture.
    """
    files = caption_files(Path(folder))
    if not files:
        return [], []
    problems: list[str] = []
    metadata = next((file for file in files if file.name == METADATA), None)
    if metadata is not None:
        problems += [
            f"{file} and {METADATA} both hold captions; keep one of them" for file in files if file != metadata
        ]
        found = _from_metadata(metadata, {picture.name for picture in pictures}, problems)
    else:
        found = _from_text_files(files, pictures, problems)
    for picture in pictures:
        text, where = found.get(picture.name, ("", ""))
        if picture.name not in found:
            problems.append(f"{picture} has no caption")
        elif not text.strip():
            problems.append(f"{where}: the caption of {picture.name} is empty")
        elif wrong := problem(text):
            problems.append(f"{where}: {wrong}")
    return [found.get(picture.name, ("", ""))[0] for picture in pictures], problems


def unused_captions(folder: Path) -> list[str]:
    """What is wrong with caption files where the method has captions of its own: one line, of the first one."""
    return [
        f"{file} is no picture; move it out of the folder, or choose a method that uses captions (lora)"
        for file in caption_files(folder)[:1]
    ]
