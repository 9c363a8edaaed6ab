"""Words that the project avoids, because a practitioner would have to decode them, and what it writes instead.

Only words are listed that have no other sense in this repository. docs/glossary.md has the terms that are ours.
"""

import re
import subprocess
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
    r"a double (?:of|for|that)|doubles:": "fake",
    r"artist|painter": "ImageGenerator",
    r"(?:is|are) to blame": "faulty",
}
IDENTIFIERS = {
    # pattern, of a part of a name with regard to case: what to name it
    r"by_hand": "unsupervised",
    r"likeness": "similarity",
    r"(?<!c)_double\b": "fake",
    r"\bSeats?\b": "Worker",
    r"\bof_first_rank\b": "broadcast_from_rank_0",
    r"class Guard\b|\bguard_|_guards?\b": "agent",
}
FILES = sorted(
    name
    for name in subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if Path(name).suffix in SUFFIXES and Path(name) != Path(__file__).relative_to(REPOSITORY)
)


def found(pattern: str, names: list[str], flags: re.RegexFlag = re.NOFLAG) -> list[str]:
    """``file:line: text`` of all lines of these files that match; a phrase is also found across the end of a line."""
    lines = []
    expression = re.compile(pattern.replace(" ", r"[\s#*]+"), flags)
    for name in names:
        path = REPOSITORY / name
        if not path.is_file():  # deleted, and not yet committed
            continue
        text = path.read_text(encoding="utf-8")
        for match in expression.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            lines.append(f"{name}:{line}: {text.splitlines()[line - 1].strip()}")
    return lines


@pytest.mark.parametrize("words", AVOIDED)
def test_text_avoids(words):
    """Documents, messages, comments, docstrings and task names."""
    assert found(rf"\b(?:{words})\b", FILES, re.IGNORECASE) == [], f"write: {AVOIDED[words]}"


@pytest.mark.parametrize("part", IDENTIFIERS)
def test_python_names_avoid(part):
    """Names in Python sources, and those of the files themselves."""
    sources = [name for name in FILES if name.endswith(".py")]
    assert found(part, sources) == [], f"name it: {IDENTIFIERS[part]}"
    assert [name for name in FILES if re.search(part, Path(name).stem)] == [], f"name it: {IDENTIFIERS[part]}"


def test_a_phrase_is_found_across_the_end_of_a_line(tmp_path, monkeypatch):
    """Of text and of a comment."""
    monkeypatch.setattr(f"{__name__}.REPOSITORY", tmp_path)
    (tmp_path / "a.py").write_text("x = 1  # as seen\n# by\n# all\n", encoding="utf-8")
    assert found(r"\bseen by all\b", ["a.py"]) == ["a.py:1: x = 1  # as seen"]
    assert found(r"\bby hand\b", ["a.py"]) == []
