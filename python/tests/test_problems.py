"""Every variable of a job, at its borders: refused by its name, or taken as it should be."""

import math

import pytest

from sdtune.settings.ansible import role_settings, typed, variable_default
from sdtune.settings.problems import role_values, setting_problems, setting_rules

ROLES = ("training", "openvino_export", "image_generation")
DEFAULTS = {role: {name: variable_default(s) for name, s, _ in role_settings(role)} for role in ROLES}
SETTINGS = [(role, name, setting) for role in ROLES for name, setting, _ in role_settings(role)]
ODD = {
    "0": 0,
    "-1": -1,
    "1e9": 1e9,
    "inf": math.inf,
    "nan": math.nan,
    "text": "abc",
    "true": True,
    "empty": "",
    "list": [1],
}


@pytest.mark.parametrize("role", ROLES)
def test_the_defaults_are_right(role):
    assert setting_problems(DEFAULTS[role], role) == {}


@pytest.mark.parametrize("odd", ODD)
def test_odd_values_are_named_or_taken(odd):
    """What is taken has the type of its setting, and is finite; what is refused is named, on one line."""
    value = ODD[odd]
    for role, name, setting in SETTINGS:
        problems = setting_problems({**DEFAULTS[role], name: value}, role)
        if problems:
            [text] = problems.values()
            assert name in text
            assert "\n" not in text
        else:
            taken = typed(value, setting)
            assert not isinstance(taken, float) or math.isfinite(taken), name
            right = setting.choices or isinstance(
                taken, (setting.kind, list) if isinstance(setting.kind, type) else list
            )
            assert taken is None or right, (name, taken)


def test_paths_on_the_hosts_are_absolute():
    paths = [(role, name) for role, name, setting in SETTINGS if setting.variable.type == "path"]
    assert len(paths) == 3
    for role, name in paths:
        assert "is relative" in setting_problems({**DEFAULTS[role], name: "photos/toys"}, role)[name]


@pytest.mark.parametrize("odd", ["inf", "nan"])
def test_no_number_is_infinite(odd):
    numbers = [(role, name) for role, name, setting in SETTINGS if setting.kind in (int, float)]
    assert len(numbers) > 30
    for role, name in numbers:
        for value in (ODD[odd], odd):  # YAML's, and as -e has it
            assert name in setting_problems({**DEFAULTS[role], name: value}, role), name


def test_values_as_e_has_them():
    """Text is taken for what it means, and named as it was typed."""
    values = {
        **DEFAULTS["training"],
        "training_learning_rate": "1e-4",
        "training_scale_lr": "yes",
        "training_seed": "7",
    }
    assert setting_problems(values, "training") == {}
    values |= {"training_learning_rate": "abc", "training_seed": "0.5"}
    assert setting_problems(values, "training") == {
        "training_learning_rate": "training_learning_rate: 'abc' is not a number",
        "training_seed": "training_seed: '0.5' is not a whole number",
    }


def test_values_that_are_wrong_together():
    values = {**DEFAULTS["training"], "training_early_stopping_patience": 2, "training_validation_steps": 0}
    [problem] = setting_problems(values, "training").values()
    assert problem.startswith("training_early_stopping_patience: without validation (training_validation_steps: 0)")


def test_rules_of_an_inventory_and_its_runs():
    """A run's own values are judged too; what is wrong in all of them is said once."""
    values = {**DEFAULTS["training"], "training_seed": -1}
    runs = [{"run_name": "a", "training_learning_rate": 0}, {"run_name": "b", "launch_config_pin": 5}, "nonsense"]
    rules = setting_rules(values, "training", runs)
    assert [rule["wrong"] for rule in rules] == [
        "training_seed: -1 is not between 0 and 2^63-1",
        "run 'a': training_learning_rate: 0.0 has to be above 0",
    ]
    assert rules[0]["remedy"] == "correct training_seed, whose default is 1 (docs/settings.md)"
    assert not any(rule["holds"] for rule in rules)


def test_zero_is_a_value_or_none_but_never_both():
    """A number that may be 0 says auto for no value: 0 is then taken as the 0 that was asked for."""
    optional = [(name, s) for _, name, s in SETTINGS if s.optional and s.kind in (int, float)]
    with_zero = [(name, s) for name, s in optional if not s.complaint(s.kind(0))]
    assert [name for name, _ in with_zero] == ["image_generation_lora_weight"]
    for name, setting in optional:
        value = typed("0", setting)
        assert (value == 0 and type(value) is setting.kind) if (name, setting) in with_zero else value is None
        assert typed(variable_default(setting), setting) is None


def test_a_section_of_a_job():
    assert role_values(
        {"openvino_export_height": "128", "openvino_export_width": 0, "other": 1}, "openvino_export"
    ) == {
        "height": 128,
        "width": None,
    }


def test_settings_of_another_method_are_named():
    ours = {**DEFAULTS["training"], "training_placeholder_token": "<dicoo>", "training_lora_rank": 4}
    assert list(setting_problems(ours, "training")) == ["training_lora_rank"]
    assert setting_problems({**ours, "training_method": "pivotal"}, "training") == {}


def wrong(values, runs=(), typed_names=(), role="training"):
    return [rule["wrong"].partition(" is of no use")[0] for rule in setting_rules(values, role, runs, typed_names)]


def test_an_inventory_may_serve_all_methods():
    """Where -e or a run chooses the method, what the inventory has for others is passed over; where it does, refused.

    What stands beside the choice, or nearer to the call, is always judged.
    """
    token = {**DEFAULTS["training"], "training_placeholder_token": "<dicoo>"}
    lora = {**token, "training_method": "lora"}
    assert wrong(lora) == ["training_placeholder_token: '<dicoo>'"]
    assert wrong(lora, typed_names=["training_method", "training_lora_rank"]) == []
    typed_too = ["training_method", "training_placeholder_token"]
    assert wrong(lora, typed_names=typed_too) == ["training_placeholder_token: '<dicoo>'"]
    assert wrong(lora, typed_names=["training_placeholder_token"]) == ["training_placeholder_token: '<dicoo>'"]

    runs = [{"run_name": name, "training_method": name} for name in ("textual_inversion", "lora", "pivotal")]
    adapted = {**token, "training_lora_rank": 16, "training_prior_preservation": True}
    assert wrong(adapted, runs) == [
        "run 'lora': training_prior_class_prompt: prior preservation needs the caption of the class pictures; set it, "
        "for example to: a photo of a toy"
    ]
    assert wrong(token | {"training_lora_rank": 16}, runs) == []
    runs[1]["training_num_vectors"] = 2
    assert wrong(token | {"training_lora_rank": 16}, runs) == ["run 'lora': training_num_vectors: 2"]
    assert wrong(token | {"training_lora_rank": 16}, runs[1:], ["training_lora_rank"])[1:] == []
    assert wrong(token, [{"run_name": "a", "training_lora_rank": 9}]) == ["run 'a': training_lora_rank: 9"]


def test_an_export_is_judged_by_the_method_too():
    ours = {**DEFAULTS["openvino_export"], "training_method": "textual_inversion", "openvino_export_lora_weight": 0.5}
    assert wrong(ours, role="openvino_export") == ["openvino_export_lora_weight: 0.5"]
    assert wrong(ours, [{"training_method": "lora"}], role="openvino_export") == []
    assert wrong(ours, typed_names=["training_method"], role="openvino_export") == []
    assert role_values(ours, "openvino_export")["lora_weight"] == 1.0


def test_prior_preservation_without_a_class_prompt_is_named():
    ours = {**DEFAULTS["training"], "training_method": "lora", "training_prior_preservation": True}
    assert setting_problems(ours, "training")["training_prior_class_prompt"].endswith("to: a photo of a toy")
