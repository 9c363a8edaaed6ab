"""Captions beside the pictures: ``NAME.txt`` for ``NAME.jpg``, or ``metadata.jsonl`` as image folders of the hub."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput
from sdtune.files import read_text
from sdtune.text import is_blank, named, text_problem
from standalone import picture_files
from standalone.picture_files import METADATA, is_caption


def caption_files(folder: Path) -> list[Path]:
    """The caption files of a picture folder, sorted by name, and what is named like one."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and is_caption(p.name))


def _read(path: Path, problems: list[str]) -> str | None:
    """A text file; where it cannot be read, that is a problem and the text is None."""
    if wrong := picture_files.problem(path):
        problems.append(f"{named(path)} {wrong}")
        return None
    try:
        return read_text(path)
    except BadInput as error:
        problems.append(str(error))
        return None


class _Twice(Exception):
    """A key is there twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of an object of JSON, each key once: else one of the values would silently not count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


_Found = dict[str, tuple[str | None, str]]
"""{picture: (its caption, where it stands)}; a caption is None where it cannot be read."""


def _from_metadata(path: Path, names: Sequence[str], problems: list[str]) -> _Found:
    """The captions of a ``metadata.jsonl``; ``names`` are the pictures that exist."""
    found: _Found = {}
    text_of_file = _read(path, problems)
    if text_of_file is None:
        return dict.fromkeys(names, (None, str(path)))
    for number, line in enumerate(text_of_file.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_once)
            name, text = row["file_name"], row["text"]
        except _Twice as twice:
            problems.append(f"{where} has the key {named(str(twice))} twice")
            continue
        except (ValueError, KeyError, TypeError, RecursionError):
            problems.append(f'{where} is not like {{"file_name": "a.jpg", "text": "a photo of ..."}}')
            continue
        if not isinstance(name, str) or not isinstance(text, str):
            problems.append(f"{where}: file_name and text have to be text")
        elif name not in names:
            problems.append(f"{where} names {named(name)}, which is not there")
        elif name in found:
            problems.append(f"{where} names {named(name)} a second time")
        else:
            found[name] = text, where
    return found


def _from_text_files(files: Sequence[Path], pictures: Sequence[Path], problems: list[str]) -> _Found:
    """The captions of ``NAME.txt``; a file without its picture, or beside another one of its name, is a problem."""
    found: _Found = {}
    for file in files:
        belonging = [picture.name for picture in pictures if picture.stem == file.stem]
        if not belonging:
            problems.append(f"{named(file)} has no picture of its name; remove it")
            continue
        text = _read(file, problems)
        for name in belonging:
            if name in found:
                problems.append(f"{file} and {found[name][1]} are both captions of {name}; remove one")
            found[name] = text and " ".join(text.split()), str(file)
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
        found = _from_metadata(metadata, [picture.name for picture in pictures], problems)
    else:
        found = _from_text_files(files, pictures, problems)
    for picture in pictures:
        text, where = found.get(picture.name, (None, ""))
        if picture.name not in found:
            problems.append(f"{named(picture)} has no caption")
        elif text is None:
            continue  # said already
        elif wrong := text_problem(text):
            problems.append(f"{where}: the caption {wrong}; type it again")
        elif is_blank(text):
            problems.append(f"{where}: the caption of {picture.name} is empty")
        elif wrong := problem(text) or "":
            problems.append(f"{where}: {wrong}")
    return [found.get(picture.name, ("", ""))[0] or "" for picture in pictures], problems


def unused_captions(folder: Path) -> list[str]:
    """What is wrong with caption files where the method has captions of its own: one line, of the first one."""
    return [
        f"{named(file)} is no picture; move it out of the folder, or choose a method that uses captions (lora)"
        for file in caption_files(folder)[:1]
    ]
