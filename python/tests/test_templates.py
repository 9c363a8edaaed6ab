"""Caption templates."""

import pytest

from sdtune.data.captions import OBJECT_TEMPLATES, STYLE_TEMPLATES, caption_templates
from sdtune.errors import BadInput


def test_every_built_in_template_has_one_placeholder():
    for template in (*OBJECT_TEMPLATES, *STYLE_TEMPLATES):
        assert template.count("{}") == 1
        assert "{" not in template.format("word")
    assert all("in the style of" in t for t in STYLE_TEMPLATES)


def test_properties_choose_their_templates():
    assert caption_templates("object") == OBJECT_TEMPLATES
    assert caption_templates("style") == STYLE_TEMPLATES
    with pytest.raises(BadInput, match="'mood' is not one of object, style"):
        caption_templates("mood")


def test_a_file_replaces_them(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("a sketch of {}\n\n  {} on a table \n", encoding="utf-8")
    assert caption_templates("object", file) == ("a sketch of {}", "{} on a table")


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("a {}", encoding="utf-8-sig")
    assert caption_templates("object", file) == ("a {}",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "für {}".encode("latin-1"),
            r"t\.txt is not encoded in UTF-8 \(byte 0xfc in line 1\), but probably in Latin-1",
        ),
        ("a {}".encode("utf-16"), r"t\.txt is encoded in UTF-16; save t\.txt as UTF-8"),
        (b"a\0 {}", "holds zero bytes"),
    ],
)
def test_other_encodings_are_named(tmp_path, data, message):
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(BadInput, match=message):
        caption_templates("object", tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("no place\n", "exactly one"), ("{} and {}\n", "exactly")]
)
def test_invalid_files_are_refused(tmp_path, text, message):
    file = tmp_path / "t.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        caption_templates("object", file)
