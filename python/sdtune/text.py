"""What counts as text: the rule for settings, and for the lines of files that a user wrote."""

import re
from pathlib import Path

from sdtune.errors import shown

# control characters other than tab and line break, other line breaks, and halves of characters, which no file can hold
_NO_TEXT = re.compile("[\0-\x08\x0b-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


def text_problem(text: str) -> str:
    """What is wrong with a text, in which it is quoted; empty if nothing is."""
    wrong = _NO_TEXT.search(text)
    return f"{shown(text)} holds the character {wrong[0]!r}, which is no text" if wrong else ""


def is_blank(text: str) -> bool:
    """Whether there is nothing to read in a text: only spaces, and characters without a width."""
    return not any(c.isprintable() and not c.isspace() for c in text)


def named(path: Path | str) -> str:
    """A path as a message names it: quoted where it holds what would break a line."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def why_no_file(path: Path) -> str:
    """What is wrong with a path that is no file, after the path."""
    return "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"


def tokens_in(text: str) -> list[str]:
    """The words of a text that are written as new tokens are, like <this>."""
    return re.findall(r"<[^<>\s]+>", text)
