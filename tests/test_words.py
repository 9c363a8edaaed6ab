"""Words that the project avoids, because a practitioner would have to decode them, and what it writes instead.

Only words are listed that have no other sense in this repository. docs/glossary.md has the terms that are ours.
"""

import functools
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest
from conftest import REPOSITORY

SUFFIXES = {".md", ".yml", ".j2", ".py", ".sh", ".c", ".h", ".svg", ".toml", ".cfg", ".css", ""}
AVOIDED = {
    # pattern, of whole words and without regard to case: what to write
    r"well-known scripts?": "diffusers' textual_inversion.py",
    r"made again": "recomputed",
    r"as a rule": "usually; the median step time",
    r"speechless": "lost agents",
    r"strangers?": "unauthenticated; another process",
    r"deaf": "unconfirmed",
    r"likeness": "similarity",
    r"take down": "record",
    r"memory nodes?": "NUMA node",
    r"route out": "air-gapped; default route",
    r"away with it": "teardown",
    r"doors?": "entry points",
    r"woven": "VNNI-packed",
    r"numbers a head": "head dimension",
    r"last words": "error message",
    r"without a word": "without an error message",
    r"its eye and its hand": "per-rank agent",
    r"by_hand|started by hand": "unsupervised",
    r"rows that the training": "learned embeddings",
    r"(?:its|the|a) kernel (?:releases|kills?|chooses|lists|names|keeps|without|when)": "the Linux kernel",
    r"a double (?:of|for|that)|doubles?(?=:)": "fake",
    r"artist|painter": "ImageGenerator",
    r"(?:is|are) to blame": "faulty",
}
IDENTIFIERS = {
    # pattern, of a part of a Python name or of a file's name, with regard to case: what to name it
    r"by_hand": "unsupervised",
    r"likeness": "similarity",
    r"(?<!c)_double$": "fake",
    r"^Seats?$": "Worker",
    r"Artist": "ImageGenerator",
    r"^of_first_rank$": "broadcast_from_rank_0",
    r"^Guard$|^guard_|_guards?$": "agent",
}
FILES = sorted(
    name
    for name in subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if Path(name).suffix in SUFFIXES and Path(name) != Path(__file__).relative_to(REPOSITORY)
)


@functools.cache
def text_of(path: Path) -> str:
    """The text of a file; empty if it is deleted, and that is not committed yet."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def found(pattern: str, names: list[str], flags: re.RegexFlag = re.NOFLAG) -> list[str]:
    """``file:line: text`` of all lines of these files that match; a phrase is also found across the end of a line."""
    lines = []
    expression = re.compile(pattern.replace(" ", r"[\s#*]+"), flags)
    for name in names:
        text = text_of(REPOSITORY / name)
        for match in expression.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            lines.append(f"{name}:{line}: {text.splitlines()[line - 1].strip()}")
    return lines


@pytest.mark.parametrize("words", AVOIDED)
def test_text_avoids(words):
    """Documents, messages, comments, docstrings and task names."""
    assert found(rf"\b(?:{words})\b", FILES, re.IGNORECASE) == [], f"write: {AVOIDED[words]}"


@functools.cache
def names_in(source: Path) -> set[str]:
    """All identifiers of a Python source; not what its strings and comments say."""
    tokens = tokenize.generate_tokens(io.StringIO(text_of(source)).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


@pytest.mark.parametrize("part", IDENTIFIERS)
def test_names_avoid(part):
    """Identifiers in Python sources, and names of files."""
    sources = [REPOSITORY / name for name in FILES if name.endswith(".py")]
    bad = {f"{path}: {name}" for path in sources for name in names_in(path) if re.search(part, name)}
    bad |= {name for name in FILES if re.search(part, Path(name).stem)}
    assert bad == set(), f"name it: {IDENTIFIERS[part]}"


def test_a_phrase_is_found_across_the_end_of_a_line(tmp_path, monkeypatch):
    """Of text and of a comment."""
    monkeypatch.setattr(f"{__name__}.REPOSITORY", tmp_path)
    (tmp_path / "a.py").write_text("x = 1  # as seen\n# by\n# all\n", encoding="utf-8")
    assert found(r"\bseen by all\b", ["a.py"]) == ["a.py:1: x = 1  # as seen"]
    assert found(r"\bby hand\b", ["a.py"]) == []
