"""What a check of a job says before anything is started."""

import re

import pytest

from sdtune.errors import BadInput
from sdtune.inference.prompts import check_tokens
from sdtune.settings import GenerationJob, Job, build
from sdtune.training.checks import check_job, pair_warnings, warmup_warnings


@pytest.mark.parametrize(
    ("setting", "inside"), [("data", ""), ("data", "runs/a"), ("model", ""), ("model", "unet/run")]
)
def test_a_run_among_its_inputs_is_refused(mapping, setting, inside):
    folder = mapping[setting]["path"]
    with pytest.raises(BadInput, match=f"run_dir: .* lies in the folder of the .* \\({setting}.path\\)"):
        check_job(build(Job, {**mapping, "run_dir": f"{folder}/x/../{inside}"}))


@pytest.mark.parametrize(
    ("schedule", "warmup", "said"),
    [
        ("constant", 0, ""),
        ("constant", 1, "lr_scheduler constant has no warm-up"),
        ("linear", 1, ""),
        ("linear", 2, "the warm-up takes 2 steps and the run 2"),
        ("constant_with_warmup", 500, "the warm-up takes 500 steps and the run 2"),
    ],
)
def test_a_warm_up_of_no_use_is_told(mapping, schedule, warmup, said):
    mapping["training"] |= {"lr_scheduler": schedule, "lr_warmup_steps": warmup}
    warnings = warmup_warnings(build(Job, mapping))
    assert [said in warning for warning in warnings] == ([True] if said else [])
    assert set(warnings) <= set(check_job(build(Job, mapping)))


@pytest.mark.parametrize(
    ("batch", "accumulated", "ranks", "said"),
    [(1, 1, 1, "is 1, .* a pair are never"), (3, 1, 3, "is 9, .* some pairs are not"), (3, 2, 1, ""), (1, 1, 2, "")],
)
def test_pairs_of_noise_in_different_steps_are_told(mapping, batch, accumulated, ranks, said):
    mapping["training"] |= {"train_batch_size": batch, "gradient_accumulation_steps": accumulated, "world_size": ranks}
    assert pair_warnings(build(Job, mapping)) == []
    mapping["training"]["noise_pairs"] = True
    warnings = pair_warnings(build(Job, mapping))
    assert [bool(re.search(said, warning)) for warning in warnings] == ([True] if said else [])
    assert set(warnings) <= set(check_job(build(Job, mapping)))


@pytest.mark.parametrize("word", ["<a><b>", "<x|y>", "dicoo", "<<x>>"])
def test_every_word_that_can_be_learned_can_be_drawn(mapping, word):
    build(Job, {**mapping, "data": {**mapping["data"], "placeholder_token": word}})
    job = GenerationJob(run_dir="/r", prompts=[f"a {word}, and {word}"])
    assert check_tokens(job, word, {f"{word}_{n}" for n in range(2)} | {word}) == []
    with pytest.raises(BadInput, match="does not know <b>"):
        check_tokens(GenerationJob(run_dir="/r", prompts=[f"a {word} <b>"]), word, {word})
