"""What a check of a job says before anything is started."""

import pytest

from sdtune.errors import BadInput
from sdtune.inference.prompts import check_tokens
from sdtune.settings import GenerationJob, Job, build
from sdtune.training.checks import check_job, warmup_warnings


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


@pytest.mark.parametrize("word", ["<a><b>", "<x|y>", "dicoo", "<<x>>"])
def test_every_word_that_can_be_learned_can_be_drawn(mapping, word):
    build(Job, {**mapping, "data": {**mapping["data"], "placeholder_token": word}})
    job = GenerationJob(run_dir="/r", prompts=[f"a {word}, and {word}"])
    assert check_tokens(job, word, {f"{word}_{n}" for n in range(2)} | {word}) == []
    with pytest.raises(BadInput, match="does not know <b>"):
        check_tokens(GenerationJob(run_dir="/r", prompts=[f"a {word} <b>"]), word, {word})
