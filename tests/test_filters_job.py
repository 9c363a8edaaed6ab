"""The content of job files, from the values of Ansible's variables."""

import sys

import pytest
from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "plugins/filter"))
from job import job_data


@pytest.mark.parametrize(
    ("section", "given", "expected"),
    [
        ("training", {"max_train_steps": "50"}, {"max_train_steps": 50}),  # as -e says it
        ("training", {"learning_rate": "1e-3"}, {"learning_rate": 1e-3}),
        ("training", {"learning_rate": 1}, {"learning_rate": 1.0}),
        ("training", {"snr_gamma": 0}, {"snr_gamma": None}),
        ("training", {"snr_gamma": "0.0"}, {"snr_gamma": None}),
        ("training", {"scale_lr": "yes", "resume_reshard": "False"}, {"scale_lr": True, "resume_reshard": False}),
        ("training", {"resume_from_checkpoint": ""}, {"resume_from_checkpoint": None}),
        ("training", {"mixed_precision": "no"}, {"mixed_precision": "no"}),
        ("data", {"placeholder_token": "5"}, {"placeholder_token": "5"}),
        ("openvino", {"height": 0, "width": "64"}, {"height": None, "width": 64}),
    ],
)
def test_values_have_the_type_of_their_setting(section, given, expected):
    """Text that means a number or a truth value becomes one; what stands for no value becomes None."""
    data = job_data({section: given})[section]
    assert data == expected
    assert {name: type(value) for name, value in data.items()} == {name: type(v) for name, v in expected.items()}


@pytest.mark.parametrize("given", [{"max_train_steps": "ten"}, {"max_train_steps": 1.5}, {"scale_lr": "perhaps"}])
def test_what_is_wrong_is_left_to_the_program(given):
    """It refuses such a value by name."""
    assert job_data({"training": given}) == {"training": given}


def test_keys_have_the_order_of_their_declaration():
    """A reader finds them in the same place in every job file."""
    data = job_data({"training": {"learning_rate": 1.0, "world_size": 2}, "seed": 1, "run_name": "r"})
    assert list(data) == ["run_name", "seed", "training"]
    assert list(data["training"]) == ["world_size", "learning_rate"]


def test_what_the_method_does_not_use_has_its_default():
    given = {"data": {"placeholder_token": "<dicoo>", "resolution": 64}, "lora": {"rank": 4}}
    assert job_data({"method": "lora", **given}) == {
        "method": "lora",
        "data": {"placeholder_token": "<concept>", "resolution": 64},
        "lora": {"rank": 4},
    }
    assert job_data({"method": "textual_inversion", **given})["lora"] == {"rank": 8}


def test_lists():
    """Each item by itself."""
    assert job_data({"seeds": ["1", 2], "prompts": ["7"]}, "generation") == {"prompts": ["7"], "seeds": [1, 2]}
