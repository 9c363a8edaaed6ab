"""Tags and variables that do not exist are refused by name; those of users are left alone."""

import pytest
from conftest import REPOSITORY

from plugins.names import judge_variables, tag_problems
from plugins.typed import declared

TAGS = {"training", "openvino_export", "always"}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("training_learning_rat", "training_learning_rate"),
        ("launch_config_rank_per_node", "launch_config_ranks_per_node"),
        ("image_generation_prompt", "image_generation_prompts"),
        ("openvino_export_xyzzy", ""),
    ],
)
def test_a_variable_with_a_prefix_of_a_role_that_no_role_has(name, near):
    """After -e it is refused; in an inventory, which may be for other projects too, where it is almost one of ours."""
    [line] = judge_variables([name], REPOSITORY, typed=True).wrong
    assert line.startswith(f"{name} is no variable of this project" + (f"; did you mean {near};" if near else ";"))
    assert bool(judge_variables([name], REPOSITORY, typed=False).wrong) == bool(near)


def test_words_that_were_left_out():
    [line] = judge_variables(["training_steps"], REPOSITORY, typed=True).wrong
    assert "training_max_train_steps or " in line
    assert judge_variables(["training_steps"], REPOSITORY, typed=False) == ([], [line])


@pytest.mark.parametrize("name", ["trianing_steps", "work_dirr", "run_nam"])
def test_a_near_miss_of_another_name_is_warned_of(name):
    judged = judge_variables([name], REPOSITORY, typed=True)
    assert judged.wrong == []
    assert judged.odd[0].startswith(f"{name} is no variable of this project")


@pytest.mark.parametrize("typed", [True, False])
def test_what_exists_and_what_belongs_to_the_user_is_left_alone(typed):
    names = [*declared(REPOSITORY / "roles"), "ansible_host", "_mine", "my_site_proxy", "nfs_server", "environment"]
    assert judge_variables(names, REPOSITORY, typed=typed) == ([], [])
    assert judge_variables(["cluster_name", "slurm_controllers"], REPOSITORY, typed=False).wrong == []


def test_tags():
    [line] = tag_problems(["trainig"], TAGS)
    assert line == (
        "--tags trainig: no task of this playbook has that tag; did you mean training; it has openvino_export, training"
    )
    assert tag_problems(["training", "always"], TAGS) == []
    assert tag_problems([], TAGS, ["opnvino_export", "molecule-notest"]) == [
        "--skip-tags opnvino_export: no task of this playbook has that tag; did you mean openvino_export"
    ]
