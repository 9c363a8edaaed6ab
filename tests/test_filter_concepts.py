"""A folder of concepts: the runs that it becomes, and what is wrong with it, all at once."""

import pytest

from plugins.filter.concepts import concept_names, concept_rules, concept_runs

PATTERN, RULE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z", "letters"


@pytest.fixture
def concepts(tmp_path):
    """Make folders of concepts: {name: names of the pictures in it}."""

    def make(**folders):
        for name, pictures in folders.items():
            (tmp_path / name).mkdir()
            for picture in pictures:
                (tmp_path / name / picture).write_bytes(b"\xff\xd8\xff picture")
        return str(tmp_path)

    return make


def test_each_folder_becomes_a_run(concepts):
    folder = concepts(mug=["1.jpg"], vase=["1.jpg", "1.txt"], **{".cache": []})
    own = [{"run_name": "vase", "training_initializer_token": "vase"}]
    assert concept_runs(own, concept_names(folder)) == [
        {"run_name": "mug", "training_concept": "mug", "training_placeholder_token": "<mug>"},
        {
            "run_name": "vase",
            "training_concept": "vase",
            "training_placeholder_token": "<vase>",
            "training_initializer_token": "vase",
        },
    ]
    assert concept_rules(folder, own, PATTERN, RULE) == []


def test_lora_learns_no_token():
    assert concept_runs([], ["mug"], "lora") == [{"run_name": "mug", "training_concept": "mug"}]
    of_one = {"run_name": "mug", "training_method": "lora"}
    assert concept_runs([of_one], ["mug"]) == [{**of_one, "training_concept": "mug"}]


def test_without_a_folder_the_runs_are_those_that_are_listed():
    assert concept_runs(["no run", {"run_name": "a"}], concept_names("")) == ["no run", {"run_name": "a"}]
    assert concept_rules("", [], PATTERN, RULE) == []


def test_all_that_is_wrong_is_said_at_once(concepts, tmp_path):
    folder = concepts(Mug=["1.jpg"], mug=["1.jpg"], empty=[], words=["a.txt"], gif=["1.gif"], **{"my vase": ["1.jpg"]})
    (tmp_path / "stray.jpg").touch()
    said = [
        f"{rule['wrong']}; {rule['remedy']}" for rule in concept_rules(folder, [{"run_name": "cup"}], PATTERN, RULE)
    ]
    for text in (
        "holds stray.jpg beside its folders; move it",
        "holds my vase, which no run can be called; use letters",
        "holds Mug, mug, which differ only in case; give each",
        "holds no picture in empty, gif, words; put three",
        "sets what differs for cup, of which the folder of concepts",
        f"1.gif in the picture folder {folder}/gif is no picture",
    ):
        assert [line for line in said if text in line], (text, said)
    assert len(said) == 6


@pytest.mark.parametrize(
    ("folder", "wrong"), [("none", "does not exist on the control node"), (".", "holds no folder")]
)
def test_no_folder_and_no_concept(tmp_path, folder, wrong):
    [rule] = concept_rules(str(tmp_path / folder), [], PATTERN, RULE)
    assert wrong in rule["wrong"]
