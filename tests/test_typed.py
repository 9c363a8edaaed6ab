"""Variables that people write as text: what roles declare, what -e makes of them, and what is refused."""

import pytest
from conftest import REPOSITORY

from plugins.typed import Wrong, declared, typed, unset_variables, wrong_types

DECLARED = declared(REPOSITORY / "roles")
# For each type: text as it is typed after -e, and the value.
TEXT = {
    "int": ("5", 5), "float": ("5e-3", 0.005), "bool": ("no", False), "str": ("a b", "a b"), "path": ("/x", "/x"),
    "dict": ("{a: 1}", {"a": 1}),
}  # fmt: skip
LISTS = {
    "int": ("1, 2", [1, 2]),
    "float": ("[0.5]", [0.5]),
    "str": ('["a, b"]', ["a, b"]),
    "dict": ("[{a: 1}]", [{"a": 1}]),
}
BAD = {"int": "5.5", "float": "fast", "bool": "maybe", "dict": "a"}


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_each_variable_of_each_role_takes_text_or_refuses_it_by_name(name):
    option = DECLARED[name]
    text, value = LISTS[option["elements"]] if option["type"] == "list" else TEXT[option["type"]]
    found = typed(text, option)
    assert found == value
    assert type(found) is type(value)
    assert typed(found, option) == found
    assert typed("{{ another }}", option) == "{{ another }}"
    bad = "a, b" if option["type"] == "list" else BAD.get(option["type"], [1])
    assert wrong_types({name: bad}, REPOSITORY / "roles")[0].startswith(f"{name} is ")


@pytest.mark.parametrize(
    ("value", "option", "expected"),
    [
        (" 7 ", {"type": "int"}, 7),
        (7.0, {"type": "int"}, 7),
        ("TRUE", {"type": "bool"}, True),
        (1, {"type": "bool"}, True),
        (3, {"type": "float"}, 3),
        ("inf", {"type": "float"}, float("inf")),  # its bounds are another question
        (42, {"type": "str"}, "42"),
        ("", {"type": "list"}, []),
        ("one", {"type": "list", "elements": "str"}, ["one"]),
        ("1,2,3", {"type": "list", "elements": "int"}, [1, 2, 3]),
        ("", {"type": "path", "default": ""}, ""),
    ],
)
def test_what_is_taken(value, option, expected):
    assert typed(value, option) == expected


@pytest.mark.parametrize(
    ("value", "option", "words"),
    [
        ("5 steps", {"type": "int"}, "is '5 steps', and has to be a whole number; write digits only"),
        ("1_000", {"type": "int"}, "is '1_000', and has to be a whole number"),
        (True, {"type": "int"}, "is True, and has to be a whole number"),
        (float("nan"), {"type": "int"}, "is nan, and has to be a whole number"),
        ("a,b", {"type": "list", "elements": "str"}, "is 'a,b', and has to be a list; write it as"),
        ("[1, x]", {"type": "list", "elements": "int"}, "has to be a list; write it as [1, 2]"),
        ("[", {"type": "list"}, "has to be a list"),
        (False, {"type": "str"}, "is False (YAML reads a bare yes or no as a Boolean), and has to be text; put quotes"),
        (None, {"type": "float"}, "is empty, and has to be a number"),
        ("2", {"type": "bool"}, "has to be true or false"),
    ],
)
def test_what_is_refused(value, option, words):
    with pytest.raises(Wrong) as caught:
        typed(value, option)
    assert words in str(caught.value)


def test_a_list_is_shown_as_it_is_typed():
    lines = wrong_types({"image_generation_prompts": "a cat, a dog"}, REPOSITORY / "roles")
    assert lines == [
        'image_generation_prompts is \'a cat, a dog\', and has to be a list; write it as ["a", "b"], with -e as '
        '\'{"image_generation_prompts": ["a", "b"]}\''
    ]


def test_variables_that_are_not_set_are_named_at_once():
    assert unset_variables(["work_dir", "run_name"], {"run_name": 1, "work_dir": 2}, ["x"]) == []
    assert unset_variables(["work_dir", "run_name"], {}, ["hosts.ini"])[0].startswith(
        "work_dir, run_name are not set; set them in group_vars/all.yml beside the hosts of hosts.ini"
    )
    assert unset_variables(["run_name"], {}, [])[0].startswith("run_name is not set; set it in")
