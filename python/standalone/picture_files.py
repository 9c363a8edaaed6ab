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
CAPTIONS = ("metadata.jsonl", ".txt")
"""Ends of the names of files that hold captions, for the methods that use them."""
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


def problems(folder: Path) -> Iterator[tuple[str, str]]:
    """``(name, what is wrong; what to do)`` of each entry that is no picture and no caption, in the order of names.

    Names are quoted where they hold what would break a line. Hidden files count as not there.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        name = path.name if path.name.isprintable() else ascii(path.name)
        if not path.name.isprintable():
            yield name, "has a name with a line break or another control character; rename it"
        elif path.is_dir():
            yield name, "is a folder; put the pictures themselves there"
        elif not path.is_file():
            yield name, "is no file, or a link to nothing; remove it"
        elif path.name.lower().endswith(CAPTIONS):
            continue
        elif path.suffix.lower() not in SUFFIXES:
            yield name, f"is no picture; remove it, or give pictures as {', '.join(SUFFIXES)}"
        else:
            try:
                with path.open("rb") as file:
                    wrong = wrong_content(file.read(64))
            except OSError as error:
                wrong = f"cannot be read ({error.strerror}); change its permissions"
            if wrong:
                yield name, wrong


def main() -> None:
    """Print the problems of a folder as JSON: ``[[name, problem], ...]``."""
    parser = argparse.ArgumentParser(prog="picture_files.py", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    print(json.dumps(list(problems(parser.parse_args().folder))))


if __name__ == "__main__":
    main()
