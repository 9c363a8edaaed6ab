"""Look at the files of a folder of pictures: names, and what their first bytes say they are.

Nothing is decoded, so it is the same on a control node and on a host without an imaging library. As a program it prints
the problems of a folder as JSON: ``picture_files.py FOLDER``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Of the files that training reads."""
METADATA = "metadata.jsonl"
"""The file that holds the captions of all pictures."""
_STARTS = ((b"\xff\xd8\xff", 0), (b"\x89PNG\r\n\x1a\n", 0), (b"WEBP", 8), (b"BM", 0))
# {first bytes: what the file is}
_OTHERS = {
    b"version https://git-lfs": "is a pointer of Git LFS in place of the picture; type git lfs pull in its folder",
    b"<": "is a page (HTML or XML) in place of the picture; take the URL of the file itself",
    b"GIF8": "is a GIF; save its frame as PNG",
    b"%PDF": "is a PDF; save it as PNG",
}
_OTHER_KINDS = {b"ftypheic": "HEIC", b"ftypmif1": "HEIF", b"ftypavif": "AVIF"}


def wrong_content(start: bytes) -> str:
    """What is wrong with a file that begins with these bytes, and what to do; empty if it is a picture."""
    if not start:
        return "is an empty file; remove or replace it"
    if any(start[offset:].startswith(magic) for magic, offset in _STARTS):
        return ""
    for magic, what in _OTHERS.items():
        if start.lstrip().startswith(magic):
            return what
    for magic, kind in _OTHER_KINDS.items():
        if start[4:].startswith(magic):
            return f"is a picture in {kind}; save it as JPEG or PNG"
    return "is no picture by its content; replace or remove it"


def is_caption(name: str) -> bool:
    """Whether a file of a picture folder holds captions, for the methods that use them, by its name."""
    return name == METADATA or Path(name).suffix.lower() == ".txt"


def problem(path: Path) -> str:
    """What is wrong with an entry of a picture folder; what to do. Empty for a picture or a file of captions."""
    if not path.name.isprintable():
        return "has a name with a line break, another control character, or bytes that are no UTF-8; rename it"
    if path.is_dir():
        return "is a folder; put the pictures themselves there"
    if not path.is_file():
        return "is no file, or a link to nothing; remove it"
    if is_caption(path.name):
        return ""
    if path.suffix.lower() not in SUFFIXES:
        return f"is no picture; remove it, or give pictures as {', '.join(SUFFIXES)}"
    try:
        with path.open("rb") as file:
            return wrong_content(file.read(64))
    except OSError as error:
        return f"cannot be read ({error.strerror}); change its permissions"


def problems(folder: Path) -> Iterator[tuple[str, str]]:
    """``(name, what is wrong; what to do)`` of each entry that is no picture and no caption, in the order of names.

    Names are quoted where they hold what would break a line. Hidden files count as not there.
    """
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (wrong := problem(path)):
            yield path.name if path.name.isprintable() else ascii(path.name), wrong


def main() -> None:
    """Print the problems of a folder as JSON: ``[[name, problem], ...]``."""
    parser = argparse.ArgumentParser(prog="picture_files.py", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    print(json.dumps(list(problems(parser.parse_args().folder))))


if __name__ == "__main__":
    main()
