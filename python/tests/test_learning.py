"""Ways to learn in fewer steps: where to start, which timesteps, directions only, and when to stop."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from sdtune.data.samples import Sampler
from sdtune.data.timesteps import Timesteps, measured_shares
from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.methods.formats import load_embeddings
from sdtune.models.pipelines import load_text_encoder, load_tokenizer
from sdtune.report.record import read_run
from sdtune.settings import Job, ValidationArgs, build
from sdtune.training.checkpoint import Progress
from sdtune.training.checks import check_job
from sdtune.training.metrics import read_metrics
from sdtune.training.norms import FixedNorms
from sdtune.training.starting import spread_out
from sdtune.training.stopping import reason_to_stop, record_validation
from sdtune.training.trainer import train
from tests.conftest import learned_rows, run_ranks, write_job

ALL_AT_ONCE = {
    "timestep_sampling": "measured",
    "noise_pairs": True,
    "embedding_norm": "fixed",
    "snr_gamma": 5.0,
    "max_train_steps": 3,
    "checkpointing_steps": 1,
}


def changed(mapping, name, *, auto=True, **sections):
    """The small job with everything at once, in its own run folder."""
    data = {"initializer_token": "auto", "initializer_candidates": "toy, robot, cat"} if auto else {}
    new = {**mapping, "run_dir": str(Run(mapping["run_dir"]).folder.with_name(name))}
    new["data"] = {**mapping["data"], **data, **sections.pop("data", {})}
    new["training"] = {**mapping["training"], **ALL_AT_ONCE, **sections.pop("training", {})}
    return build(Job, {**new, **sections})


def cut_after_step_1(job, name):
    """A copy of a run as if it had been killed after its first step."""
    copy = Run(job.run_dir).folder.with_name(name)
    shutil.copytree(job.run_dir, copy)
    Run(copy).finished.unlink()
    for path in sorted(Run(copy).checkpoints.glob("step-*"))[1:]:
        shutil.rmtree(path)


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_all_at_once_ranks_and_accumulation_equal_one_larger_batch(mapping):
    one = changed(mapping, "one", training={"train_batch_size": 4})
    facts = train(one)
    two = changed(mapping, "two", training={"world_size": 2, "train_batch_size": 1, "gradient_accumulation_steps": 2})
    run_ranks(write_job(Run(two.run_dir).folder.with_suffix(".yaml"), two), 2)
    torch.testing.assert_close(learned_rows(two), learned_rows(one), rtol=1e-4, atol=1e-6)
    assert Run(two.run_dir).facts()["starting_point"] == facts["starting_point"]


def test_all_at_once_resumes_to_the_same_bits_without_a_new_search(mapping, monkeypatch):
    whole = changed(mapping, "whole")
    train(whole)
    cut_after_step_1(whole, "cut")
    resumed = changed(mapping, "cut", training={"resume_from_checkpoint": "latest"})
    for name in ("Search", "measure_shares"):
        monkeypatch.delattr(f"sdtune.training.beginning.{name}")
    facts = train(resumed)
    assert torch.equal(learned_rows(resumed), learned_rows(whole))
    kinds = [m["kind"] for m in read_metrics(Run(resumed.run_dir).metrics)]
    assert (kinds.count("starting_point"), kinds.count("step")) == (1, 3)
    assert facts["starting_point"] == Run(whole.run_dir).facts()["starting_point"]


def test_auto_starts_from_the_word_with_the_lowest_loss(mapping):
    """With the word as initializer token, the loss before the first step is the one that the search had found."""
    job = changed(mapping, "auto", training={"embedding_norm": "free"}, validation={"steps": 9, "triples": 2})
    facts = train(job)
    [found] = [m for m in read_metrics(Run(job.run_dir).metrics) if m["kind"] == "starting_point"]
    losses = {}
    for word in found["losses"]:
        named = {"auto": False, "data": {"initializer_token": word}, "validation": job.validation.__dict__}
        losses[word] = train(changed(mapping, word, **named, training={"max_train_steps": 1}))["initializer_loss"]
    assert facts["starting_point"] == found["point"] == min(losses, key=losses.__getitem__)
    assert found["losses"] == pytest.approx(losses, rel=1e-5)
    assert facts["initializer_loss"] == pytest.approx(losses[found["point"]], rel=1e-5)
    assert read_run(job.run_dir).starting_point == f"the token {found['point']}, the best of 3 that were compared"


def test_auto_chooses_from_the_vocabulary_for_every_text_encoder(mapping, untrained_xl):
    mapping["model"] = {"path": str(untrained_xl)}
    job = changed(
        mapping, "xl", data={"initializer_candidates": None, "num_vectors": 2}, training={"max_train_steps": 1}
    )
    word = train(job)["starting_point"]
    embeddings = load_embeddings(Run(job.run_dir).learned)[1]
    for part, learned in (("text_encoder", embeddings["clip_l"]), ("text_encoder_2", embeddings["clip_g"])):
        [number] = load_tokenizer(untrained_xl, part).encode(word, add_special_tokens=False)
        start = load_text_encoder(untrained_xl, part, torch.float32).get_input_embeddings().weight[number]
        torch.testing.assert_close(learned.norm(dim=-1), start.norm().expand(2))  # embedding_norm: fixed
        assert (learned - start).abs().max() < 0.03  # one step at 1e-2


def test_auto_fills_the_users_captions_with_each_word(mapping):
    job = changed(
        mapping,
        "pivotal",
        method="pivotal",
        data={"placeholder_token": "<t>", "instance_prompt": "a photo of <t>"},
        lora={"rank": 4},
    )
    train(job)
    [found] = [m for m in read_metrics(Run(job.run_dir).metrics) if m["kind"] == "starting_point"]
    assert len(set(found["losses"].values())) == 3  # the words were in the captions


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"initializer_candidates": ", ,"}, "data.initializer_candidates: ', ,' holds no word; write for example: toy"),
        (
            {"initializer_token": "toy"},
            "nothing is chosen from them, for data.initializer_token is 'toy'; set it to auto",
        ),
    ],
)
def test_candidates_that_no_search_can_use_are_refused(mapping, data, message):
    with pytest.raises(BadInput, match=message):
        changed(mapping, "refused", data=data)


def test_a_candidate_of_several_tokens_is_refused_by_name(mapping):
    job = changed(mapping, "refused", data={"initializer_candidates": "toy, yellow robot"})
    with pytest.raises(BadInput, match=r"data.initializer_candidates: 'yellow robot' is 2 tokens for this model"):
        check_job(job)
    check_job(changed(mapping, "allowed", data={"initializer_candidates": "toy, yellow robot", "num_vectors": 2}))


# --- parts -----------------------------------------------------------------------------------------------------------


def sampler(**options):
    return Sampler(3, 5, 7, 1000, lambda _: (4, 2, 2), **options)


def test_spread_timesteps_fill_the_schedule_in_every_part_of_a_run():
    samples = sampler(timestep_sampling="spread")
    for first in (0, 16, 1600):
        timesteps = sorted(samples(n).timestep for n in range(first, first + 16))
        assert max(np.diff([timesteps[-1] - 1000, *timesteps])) < 150  # at random, gaps of 300 are usual
    assert abs(np.mean([samples(n).timestep for n in range(4000)]) - 499.5) < 5


def test_measured_timesteps_keep_the_expected_loss():
    shares = measured_shares([0.1, 0.5, 2.0, 0.4])
    assert sum(shares) == pytest.approx(1)
    assert max(shares) == shares[2]
    samples = sampler(timestep_sampling="measured")
    samples.timesteps = Timesteps(1000, shares)
    drawn = [samples(n) for n in range(8000)]
    weights = np.array([s.weight for s in drawn])
    assert max(weights) <= 4
    for loss in (lambda t: 1.0, lambda t: t / 1000, lambda t: (t / 1000) ** 3):
        everywhere = np.mean([loss(t) for t in range(1000)])
        assert np.mean(weights * [loss(s.timestep) for s in drawn]) == pytest.approx(everywhere, rel=0.01)
    assert np.mean([500 <= s.timestep < 750 for s in drawn]) == pytest.approx(shares[2], rel=0.02)


def test_nothing_is_measured_where_nothing_has_a_gradient():
    assert measured_shares([0.0, 0.0]) == [0.5, 0.5]


def test_pairs_of_samples_differ_in_the_sign_of_their_noise_only():
    samples = sampler(noise_pairs=True, class_pictures=4, class_weight=0.5)
    for first, second in ((samples(6), samples(7)), (samples.class_sample(6), samples.class_sample(7))):
        assert torch.equal(first.noise, -second.noise)
        assert torch.equal(first.latent_noise, second.latent_noise)
        same = ("picture", "mirrored", "caption", "timestep", "weight")
        assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]
        assert second.number == first.number + 1
    assert samples.pictures_of(7) == samples.pictures_of(6)
    assert [samples(2 * n).picture for n in range(5)] == [sampler()(n).picture for n in range(5)]


def test_a_fixed_norm_leaves_the_direction_to_the_gradient():
    parameter = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    norms = FixedNorms({"p": parameter}, {"p": parameter.detach().clone()})
    parameter.grad = torch.tensor([[3.0, 4.0], [1.0, 7.0]])
    norms.before_step()
    torch.testing.assert_close(parameter.grad, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    with torch.no_grad():
        parameter -= parameter.grad
    norms.after_step()
    torch.testing.assert_close(parameter.norm(dim=-1), torch.tensor([5.0, 2.0]))
    torch.testing.assert_close(parameter[1] / 2, torch.tensor([-1.0, 2.0]) / 5**0.5)


@pytest.mark.parametrize(("count", "length"), [(16, 64), (16, 6), (1, 9), (5, 5)])
def test_the_first_triples_of_a_search_are_far_apart(count, length):
    chosen = spread_out(count, length)
    assert len(chosen) == len(set(chosen)) == min(count, length)
    assert set(chosen) <= set(range(length))
    if len(chosen) > 1:
        assert abs(chosen[0] - chosen[1]) >= length // 2


def losses_until_stop(settings, losses):
    """How many of the losses a run has seen when it stops, and why."""
    progress = Progress()
    for number, loss in enumerate(losses, 1):
        record_validation(progress, settings, loss)
        progress = Progress(**json.loads(json.dumps(progress.__dict__)))  # as a checkpoint keeps it
        if reason := reason_to_stop(progress, settings):
            return number, reason
    return None, ""


FALLING = [0.1 * 0.7**k + 0.08 for k in range(40)]


def test_a_run_stops_when_the_loss_varies_little_beside_all_of_it():
    settings = ValidationArgs(early_stopping="variance", early_stopping_patience=5)
    number, reason = losses_until_stop(settings, FALLING)
    assert 6 < number < 20
    assert reason.startswith("the variance of the last 5 validation losses is ")
    strict = ValidationArgs(early_stopping="variance", early_stopping_patience=5, early_stopping_variance=0.01)
    assert number < losses_until_stop(strict, FALLING)[0]
    assert losses_until_stop(settings, [0.1 - 0.001 * k for k in range(12)]) == (None, "")  # it still falls


def test_a_plateau_is_judged_as_before():
    settings = ValidationArgs(early_stopping_patience=3)
    assert losses_until_stop(settings, [0.1, 0.09, 0.09, 0.1, 0.09]) == (
        5,
        "3 consecutive validations without improvement",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping_patience": 2}, "the variance of 2 losses says nothing; take at least 3"),
        ({}, "the variance of 0 losses says nothing; take at least 3, or validation.early_stopping: plateau"),
        (
            {"early_stopping_patience": 5, "early_stopping_min_delta": 0.1},
            "min_delta: it is of no use to validation.early_stopping",
        ),
    ],
)
def test_a_variance_that_says_nothing_is_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        ValidationArgs(early_stopping="variance", **settings)
