"""Filters for what a user names on the control node: paths, folders of pictures, URLs, models."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

sys.path.append(str(Path(__file__).resolve().parents[2] / "python"))
from standalone import model_folder, picture_files

# {pattern of a host: what its pages of files have in their path, and what the files have}
_PAGES = {r"(.*\.)?huggingface\.co|hf\.co|hf-mirror\.com": "resolve", r"(.*\.)?github\.com": "raw"}

_SCHEMES = ("http", "https", "ftp", "file")
_CHARACTERS = re.compile(r"[!-~\u00a1-\uffff]+")
_HOST = re.compile(r"[^\s/?#@\\<>|^`{}\"%]+")


def control_path(path: str) -> str:
    """A path on the control node, absolute: ``~`` is the user's home, and relative paths begin where he stands."""
    text = str(path)
    return os.path.abspath(os.path.expanduser(text)) if text else ""  # noqa: PTH100, PTH111 - keeps links as they are


def folder_problems(folder: str) -> list[str]:
    """What is wrong with a folder of pictures, each as ``<what>; <what to do>``; empty if it can be used."""
    if not folder or not Path(folder).is_dir():
        return []  # another rule judges that
    return [f"{what} in the picture folder {folder} {wrong}" for what, wrong in picture_files.problems(Path(folder))]


def folder_names(folder: str) -> list[str]:
    """The names in a folder without hidden ones, sorted."""
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))


def url_name(url: str) -> str:
    """The name of the file that a URL leads to, without its query."""
    parts = _split(str(url))
    return unquote(parts.path).rpartition("/")[2] if parts else ""


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None where its scheme, host or port is none, or a character is of no URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme not in _SCHEMES or not _CHARACTERS.fullmatch(url) or port == 0:
        return None
    return parts if parts.scheme == "file" or _HOST.fullmatch(host) else None


def url_problems(urls: Iterable[str]) -> list[str]:
    """What is wrong with URLs of pictures, each as ``<what>; <what to do>``; empty if they can be downloaded."""
    found = []
    for url in map(str, urls):
        parts = _split(url)
        if not parts:
            found.append(f"{url!r} of training_data_urls is no URL; write it as https://HOST/PATH/NAME.jpg")
            continue
        raw = next((word for host, word in _PAGES.items() if re.fullmatch(host, parts.hostname or "")), None)
        if raw and "/blob/" in parts.path:
            right = url.replace("/blob/", f"/{raw}/", 1)
            found.append(f"{url} of training_data_urls is the page of a file, not the file; take {right}")
        elif Path(url_name(url)).suffix.lower() not in picture_files.SUFFIXES:
            types = ", ".join(picture_files.SUFFIXES)
            found.append(f"{url} of training_data_urls is no picture; its path has to end in one of {types}")
    return found


def model_problems(model: str, variant: str = "") -> list[str]:
    """What is wrong with a model on the control node, each after the words "the model folder X"; empty if it is right.

    A folder that does not exist is judged by another rule.
    """
    return model_folder.model_problems(model, variant) if model and Path(model).exists() else []


def model_files(model: str, variant: str = "") -> dict[str, str]:
    """{name below the installed folder: path on the control node} of the files of a model that are used."""
    return {name: str(Path(model) / source) for name, source in model_folder.used_files(model, variant).items()}


def side_problems(sides: dict[str, Any], model: str) -> list[str]:
    """What is wrong with sizes of pictures for a model on the control node, with the neighbors that fit.

    Args:
        sides: {variable: pixels}; what is no number is judged by another rule.
        model: folder of the model; nothing is known of one that cannot be read.
    """
    try:
        multiple = model_folder.size_multiple(model)
    except model_folder.ModelError:
        return []
    numbers = {name: int(side) for name, side in sides.items() if re.fullmatch("[0-9]{1,9}", str(side)) and int(side)}
    return [problem for name, side in numbers.items() if (problem := model_folder.side_problem(name, side, multiple))]


def as_rules(problems: Iterable[str], prefix: str = "") -> list[dict[str, Any]]:
    """Problems of the form ``<what is wrong>; <what to do>`` as rules of preflight, which do not hold."""
    rules = []
    for problem in problems:
        wrong, _, remedy = problem.partition("; ")
        rules.append({"holds": False, "wrong": prefix + wrong, "remedy": remedy or "correct it"})
    return rules


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {
            function.__name__: function
            for function in (
                as_rules,
                control_path,
                folder_names,
                folder_problems,
                model_files,
                model_problems,
                side_problems,
                url_name,
                url_problems,
            )
        }
