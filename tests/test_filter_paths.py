"""What a user names on the control node: paths, pictures, URLs, models."""

from pathlib import Path

import pytest
from conftest import REPOSITORY

from plugins.filter.paths import (
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


def test_paths_begin_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert control_path("photos [2024]") == f"{tmp_path}/photos [2024]"
    assert control_path("~/mug") == "/home/ada/mug"
    assert control_path("/srv/mug") == "/srv/mug"
    assert control_path("") == ""


def test_a_folder_of_pictures(tmp_path):
    """Brackets are letters; hidden files do not count; what is no picture is named on one line."""
    folder = tmp_path / "photos [2024]"
    (folder / "more").mkdir(parents=True)
    for name, content in {
        "0.jpg": b"\xff\xd8\xff", "a b.PNG": b"\x89PNG\r\n\x1a\n", ".hidden": b"", "page.png": b"<html>",
        "x.gif": b"GIF8", "c\nd.png": b"\x89PNG\r\n\x1a\n", "lfs.png": b"version https://git-lfs",
        "e.webp": b"RIFF\0\0\0\0WEBP", "n.bmp": b"x", "i.jpg": b"\0\0\0\x18ftypheic",
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    found = folder_problems(str(folder))
    assert [line.split(" in the picture folder ")[0] for line in found] == [
        "'c\\nd.png'", "i.jpg", "lfs.png", "more", "n.bmp", "page.png", "x.gif",
    ]  # fmt: skip
    assert not any("\n" in line for line in found)
    assert folder_problems(str(tmp_path / "none")) == []
    assert ".hidden" not in folder_names(str(folder))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://h.test/a/0.jpeg?download=true", ""),
        ("https://h.test/a/0.JPG#top", ""),
        ("https://huggingface.co/a/b/resolve/main/0.png", ""),
        ("https://huggingface.co/a/b/blob/main/0.png", "take https://huggingface.co/a/b/resolve/main/0.png"),
        ("https://github.com/a/b/blob/main/0.png", "take https://github.com/a/b/raw/main/0.png"),
        ("https://h.test/a?name=0.jpg", "is no picture"),
        ("photos/0.jpg", "is no URL"),
        ("https:///0.jpg", "is no URL"),
        ("http://[bad/0.jpg", "is no URL"),
        ("http://h.test:99999/0.jpg", "is no URL"),
        ("http://h.test:x/0.jpg", "is no URL"),
        ("http://h.test:0/0.jpg", "is no URL"),
        ("http://h .test/0.jpg", "is no URL"),
        ("http://h.test/a b/0.jpg", "is no URL"),
        ("http://h<i>.test/0.jpg", "is no URL"),
        ("https://user:secret@h.test:8443/0.jpg", ""),
        ("http://[::1]:80/0.jpg", ""),
        ("https://b\u00fccher.test/\u00fc.png", ""),
        ("file:///data/0.jpg", ""),
    ],
)
def test_urls_of_pictures(url, problem):
    found = url_problems([url])
    assert (problem in found[0]) if problem else found == []


def test_names_of_downloads():
    assert url_name("https://h.test/a/0%201.jpeg?download=true") == "0 1.jpeg"
    assert url_name("http://[bad/0.jpg") == ""  # another rule refuses it


def test_a_model_on_the_control_node():
    model = str(REPOSITORY / "toyworld/model")
    assert model_problems(model) == []
    assert model_problems("/nowhere") == []
    files = model_files(model)
    assert all(Path(path).is_file() for path in files.values())
    assert "unet/diffusion_pytorch_model.safetensors" in files


def test_sizes_for_a_model():
    """A value that is no number is another rule's."""
    sides = {"training_resolution": "72", "openvino_export_height": 0, "openvino_export_width": "wide"}
    [problem] = side_problems(sides, str(REPOSITORY / "toyworld/model"))
    assert problem.startswith("training_resolution: 72 is not a multiple of 16")
    assert side_problems(sides, "/nowhere") == []


def test_problems_become_rules():
    assert as_rules(["a is b; do c; or d"], "x ") == [{"holds": False, "wrong": "x a is b", "remedy": "do c; or d"}]
