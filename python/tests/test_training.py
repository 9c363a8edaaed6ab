"""Whole runs on the untrained pipeline: results, equivalences, resuming, refusals."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch

from sdtune.errors import BadInput, TrainingFailed
from sdtune.launch.run_folder import Run
from sdtune.models.registry import family_of
from sdtune.models.sd import StableDiffusionNetworks
from sdtune.settings import Job, build
from sdtune.training.checkpoint import find_checkpoint
from sdtune.training.checks import check_job
from sdtune.training.metrics import read_metrics
from sdtune.training.trainer import train
from tests.conftest import PATIENCE, learned_rows, run_ranks, start_ranks, write_job


def changed(mapping, run_dir=None, **sections):
    new = {k: dict(v) if isinstance(v, dict) else v for k, v in mapping.items()}
    for section, values in sections.items():
        new[section].update(values)
    if run_dir is not None:
        new["run_dir"] = str(run_dir)
    return build(Job, new)


def test_what_a_run_writes(mapping):
    job = changed(mapping, validation={"steps": 1, "reference_caption": "yellow toy"})
    facts = train(job)
    lines = read_metrics(Run(job.run_dir).metrics)
    assert [m["kind"] for m in lines] == [
        "start", "validation", "step", "ranks", "validation", "step", "ranks", "validation"
    ]  # fmt: skip
    step = next(m for m in lines if m["kind"] == "step")
    expected = {"step", "loss", "lr", "step_s", "images_per_s", "sync_bytes", "sync_s", "world_size", "forward_s"}
    assert expected <= step.keys()
    assert (step["world_size"], step["sync_bytes"], step["lr"]) == (1, 0, 0.01)
    assert facts == json.loads(Run(job.run_dir).finished.read_text(encoding="utf-8"))
    assert learned_rows(job).shape == (1, 128)


def test_a_finished_run_is_refused_and_replaced_only_on_request(mapping):
    job = changed(mapping)
    train(job)
    before = learned_rows(job)
    again = build(Job, {**mapping, "seed": 2})
    with pytest.raises(BadInput, match=r"finished run.*run_name.*--overwrite.*training_overwrite=true"):
        train(again)
    assert torch.equal(learned_rows(job), before)
    train(build(Job, {**mapping, "seed": 2, "overwrite": True}))
    assert not torch.equal(learned_rows(job), before)


@pytest.mark.parametrize("split", [{"train_batch_size": 2, "gradient_accumulation_steps": 2}, {"world_size": 2}])
def test_ranks_and_accumulation_equal_one_larger_batch(mapping, tmp_path, split):
    one = changed(mapping, training={"train_batch_size": 4, "max_train_steps": 3})
    train(one)
    other = changed(mapping, tmp_path / "other", training={"max_train_steps": 3, **split})
    run_ranks(write_job(tmp_path / "job.yaml", other), other.training.world_size)
    torch.testing.assert_close(learned_rows(other), learned_rows(one), rtol=1e-4, atol=1e-6)
    steps = [m for m in read_metrics(Run(other.run_dir).metrics) if m["kind"] == "step"]
    size = other.training.world_size
    # 128 gradients, the loss and the stop flag
    assert {(m["world_size"], m["sync_bytes"]) for m in steps} == {(size, 4 * 130 if size > 1 else 0)}
    expected = [m["loss"] for m in read_metrics(Run(one.run_dir).metrics) if m["kind"] == "step"]
    assert [m["loss"] for m in steps] == pytest.approx(expected, rel=1e-4)  # the mean over all ranks


def test_validation_is_the_same_on_any_number_of_ranks(mapping, tmp_path):
    def losses(job):
        return [m["loss"] for m in read_metrics(Run(job.run_dir).metrics) if m["kind"] == "validation"]

    one = changed(mapping, training={"max_train_steps": 1, "train_batch_size": 4}, validation={"steps": 1})
    train(one)
    two = changed(mapping, tmp_path / "two", training={"max_train_steps": 1, "world_size": 2}, validation={"steps": 1})
    run_ranks(write_job(tmp_path / "job.yaml", two), 2)
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)


def test_scale_lr_multiplies_by_the_global_batch(mapping):
    job = changed(mapping, training={"scale_lr": True, "gradient_accumulation_steps": 3, "max_train_steps": 1})
    train(job)
    (step,) = (m for m in read_metrics(Run(job.run_dir).metrics) if m["kind"] == "step")
    assert step["lr"] == pytest.approx(0.01 * 2 * 3)


def test_schedules_count_optimizer_steps(mapping):
    job = changed(mapping, training={"lr_scheduler": "linear", "lr_warmup_steps": 2, "max_train_steps": 4})
    train(job)
    rates = [m["lr"] for m in read_metrics(Run(job.run_dir).metrics) if m["kind"] == "step"]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.005])


@pytest.mark.parametrize("scheduler", ["constant", "cosine"])
def test_resuming_is_bit_exact(mapping, tmp_path, scheduler):
    options = {"max_train_steps": 6, "checkpointing_steps": 2, "lr_scheduler": scheduler, "lr_warmup_steps": 1}
    whole = changed(mapping, training=options, validation={"steps": 3})
    train(whole)
    half = tmp_path / "half"
    shutil.copytree(whole.run_dir, half)
    (half / "finished.json").unlink()
    shutil.rmtree(half / "checkpoints" / "step-000006")
    resumed = changed(mapping, half, training={**options, "resume_from_checkpoint": "latest"}, validation={"steps": 3})
    train(resumed)
    assert torch.equal(learned_rows(resumed), learned_rows(whole))

    def comparable(job):
        lines = read_metrics(Run(job.run_dir).metrics)
        return [
            (m["kind"], m.get("step"), m.get("loss"), m.get("lr")) for m in lines if m["kind"] in ("step", "validation")
        ]

    assert comparable(resumed) == comparable(whole)


def test_two_ranks_killed_at_any_time_resume_to_the_same_bits(mapping, tmp_path):
    """Each rank has its own disk: only rank 0 has the checkpoints, and both have work before the first step."""
    options = {"max_train_steps": 30, "checkpointing_steps": 3, "world_size": 2, "train_batch_size": 1}
    mapping["validation"] |= {"steps": 10}
    whole = changed(mapping, training=options)
    run_ranks(write_job(tmp_path / "whole.yaml", whole), 2)
    cut = changed(mapping, tmp_path / "cut", training=options)
    ranks = start_ranks(write_job(tmp_path / "cut.yaml", cut), 2)
    deadline = time.monotonic() + PATIENCE
    while not list(Run(cut.run_dir).checkpoints.glob("step-*")):
        assert time.monotonic() < deadline, ranks[0].communicate()[0]
        time.sleep(0.01)
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    for rank in ranks:
        rank.communicate()
    assert not Run(cut.run_dir).finished.exists()
    resumed = {**options, "resume_from_checkpoint": "latest"}
    again, elsewhere = (changed(mapping, tmp_path / name, training=resumed) for name in ("cut", "elsewhere"))
    run_ranks([write_job(tmp_path / "cut.yaml", again), write_job(tmp_path / "elsewhere.yaml", elsewhere)], 2)
    assert torch.equal(learned_rows(again), learned_rows(whole))


def stop_after(mapping, tmp_path, steps, **training):
    """A run of ``steps`` steps without its ``finished.json``: as if it had been interrupted there."""
    job = changed(mapping, tmp_path / "cut", training={**training, "max_train_steps": steps})
    train(job)
    (Run(job.run_dir).folder / "finished.json").unlink()


def test_two_ranks_stop_together_on_request_and_resume_to_the_same_bits(mapping, tmp_path):
    options = {"world_size": 2, "max_train_steps": 2, "train_batch_size": 1}
    whole = changed(mapping, tmp_path / "whole", training=options)
    run_ranks(write_job(tmp_path / "whole.yaml", whole), 2)
    cut = changed(mapping, tmp_path / "cut", training={**options, "resume_from_checkpoint": "auto"})
    run = Run(cut.run_dir)
    run.folder.mkdir()
    run.stop.touch()
    ranks = start_ranks(write_job(tmp_path / "cut.yaml", cut), 2)
    printed = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [3, 3], printed
    assert "stopped on request after step 1" in printed[1]
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000001"]
    assert read_metrics(run.metrics)[-1]["kind"] == "stopped"
    assert not run.finished.exists()
    assert not run.stop.exists()
    run_ranks(tmp_path / "cut.yaml", 2)
    assert torch.equal(learned_rows(cut), learned_rows(whole))


def test_auto_resumes_or_starts_a_new_run_and_latest_needs_a_checkpoint(mapping, tmp_path):
    options = {"checkpointing_steps": 2, "resume_from_checkpoint": "auto"}
    whole = changed(mapping, training={**options, "max_train_steps": 4})
    train(whole)
    stop_after(mapping, tmp_path, 2, **options)
    go_on = changed(mapping, tmp_path / "cut", training={**options, "max_train_steps": 4})
    train(go_on)
    assert torch.equal(learned_rows(go_on), learned_rows(whole))
    latest = {"max_train_steps": 2, "resume_from_checkpoint": "latest"}
    with pytest.raises(BadInput, match=r"holds no complete checkpoint; auto would start a new run"):
        train(changed(mapping, tmp_path / "none", training=latest))


def test_another_number_of_ranks_is_refused_or_resharded(mapping, tmp_path):
    options = {"checkpointing_steps": 2}
    whole = changed(mapping, training={**options, "max_train_steps": 4})
    train(whole)
    stop_after(mapping, tmp_path, 2, **options)
    two = {**options, "max_train_steps": 4, "world_size": 2, "train_batch_size": 1, "resume_from_checkpoint": "auto"}
    refused = changed(mapping, tmp_path / "cut", training=two)
    ranks = start_ranks(write_job(tmp_path / "job.yaml", refused), 2)
    for rank in ranks:
        printed = rank.communicate()[0]
        assert rank.returncode == 2, printed
        assert "its world_size is 1, this job's is 2; put it back, or allow it with resume_reshard" in printed
    allowed = changed(mapping, tmp_path / "cut", training={**two, "resume_reshard": True})
    printed = run_ranks(write_job(tmp_path / "job.yaml", allowed), 2)[0]
    assert "resumed on 2 ranks instead of 1: the samples stay the same" in printed
    torch.testing.assert_close(learned_rows(allowed), learned_rows(whole), rtol=1e-4, atol=1e-6)


def test_another_global_batch_continues_with_unseen_samples(mapping, tmp_path):
    stop_after(mapping, tmp_path, 2, checkpointing_steps=2)
    options = {"train_batch_size": 3, "max_train_steps": 3, "checkpointing_steps": 1}
    job = changed(
        mapping, tmp_path / "cut", training={**options, "resume_from_checkpoint": "auto", "resume_reshard": True}
    )
    with pytest.warns(UserWarning, match="a global batch of 3 instead of 2: from here on the steps differ"):
        train(job)
    progress = json.loads((Run(job.run_dir).checkpoints / "step-000003" / "checkpoint.json").read_text())["progress"]
    assert (progress["step"], progress["samples"]) == (3, 2 * 2 + 3)


def test_a_plateau_stops_the_run_and_survives_a_resume(mapping, tmp_path):
    # with this learning rate no validation improves
    options = {"learning_rate": 1e-12, "max_train_steps": 9, "checkpointing_steps": 1}
    plateau = {"steps": 1, "early_stopping_patience": 3, "early_stopping_min_delta": 0.01}
    job = changed(mapping, training=options, validation=plateau)
    facts = train(job)
    assert (facts["steps"], facts["stopped_early"]) == (3, True)
    assert learned_rows(job).shape == (1, 128)

    half = tmp_path / "half"
    shutil.copytree(job.run_dir, half)
    (half / "finished.json").unlink()
    shutil.rmtree(half / "checkpoints" / "step-000003")
    again = changed(mapping, half, training={**options, "resume_from_checkpoint": "auto"}, validation=plateau)
    assert train(again)["steps"] == 3

    learning = changed(mapping, tmp_path / "learning", training={"max_train_steps": 3}, validation={"steps": 1})
    assert train(learning)["stopped_early"] is False


def test_tensorboard_shows_the_same_figures(mapping):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = changed(mapping, training={"max_train_steps": 3}, validation={"steps": 3})
    train(job)
    events = EventAccumulator(str(Run(job.run_dir).folder / "tensorboard")).Reload()
    lines = [m for m in read_metrics(Run(job.run_dir).metrics) if m["kind"] == "step"]
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [
        (m["step"], pytest.approx(m["loss"])) for m in lines
    ]
    assert [e.step for e in events.Scalars("validation/loss")] == [0, 3]


def test_a_full_disk_is_found_before_anything_is_written(mapping, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], check=True)
    try:
        with pytest.raises(
            BadInput, match=r"has 13 MB free, .* write \d+ MB \(its pipeline [\d.]+ MB, the .*; make room"
        ):
            train(changed(mapping, disk / "run", training={"save_as_full_pipeline": True}))
        (disk / "filler").write_bytes(b"x" * (11 << 20))
        with pytest.raises(BadInput, match=r"run_dir: .* make room"):
            train(changed(mapping, disk / "run"))
        assert not list(disk.rglob("*metrics*"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_checkpoints_are_few_small_and_checked(mapping, tmp_path):
    job = changed(mapping, training={"max_train_steps": 5, "checkpointing_steps": 1, "checkpoints_total_limit": 2})
    train(job)
    folder = Run(job.run_dir).checkpoints
    assert sorted(p.name for p in folder.iterdir()) == ["step-000004", "step-000005"]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 20_000

    newest = folder / "step-000005" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="step-000005 is incomplete; skipped"):
        assert find_checkpoint(folder, "latest", {}).facts["progress"]["step"] == 4
    with pytest.raises(BadInput, match="step-000005 is missing or incomplete"):
        find_checkpoint(folder, "step-000005", {})
    with pytest.raises(BadInput, match="its num_vectors is 1, this job's is 9"):
        find_checkpoint(folder, "latest", {"num_vectors": 9})


@pytest.mark.parametrize("which", ["auto", "latest", "step-000001"])
def test_a_checkpoint_of_an_older_format_is_refused(mapping, which):
    job = changed(mapping, training={"max_train_steps": 1, "checkpointing_steps": 1})
    train(job)
    path = Run(job.run_dir).checkpoints / "step-000001" / "checkpoint.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    del facts["format"]  # the first format had no number
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(BadInput, match=r"step-000001 has format 1, but this version of sdtune reads format 2"):
        find_checkpoint(Run(job.run_dir).checkpoints, which, facts["identity"])


def test_another_model_has_another_fingerprint(untrained_model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(untrained_model, copy)
    family = family_of(untrained_model)
    assert family.fingerprint(copy) == family.fingerprint(untrained_model)
    path = next((copy / "unet").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert family.fingerprint(copy) != family.fingerprint(untrained_model)


def test_a_loss_that_is_not_a_number_stops_and_names_the_sample(mapping, monkeypatch):
    real = StableDiffusionNetworks.denoising_losses
    calls = []

    def broken(*args):
        calls.append(1)
        return real(*args) * (math.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(StableDiffusionNetworks, "denoising_losses", broken)
    job = changed(mapping, training={"checkpointing_steps": 1})
    with pytest.raises(TrainingFailed, match=r"the loss is nan at step 2, rank 0, picture \d\.png, timestep \d+"):
        train(job)
    assert (Run(job.run_dir).checkpoints / "step-000001").is_dir()
    assert not Run(job.run_dir).finished.exists()


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (
            "data",
            "resolution",
            60,
            "data.resolution: 60 is not a multiple of 16, which this model's VAE and UNet need; take 48 or 64",
        ),
        ("data", "initializer_token", "yellow toy", "is 2 tokens for this model"),
        ("data", "placeholder_token", "toy", "'toy' is in the model's vocabulary"),
        ("data", "path", "/nonexistent", "the picture folder /nonexistent does not exist"),
        ("data", "templates_file", "/nonexistent", "templates_file: /nonexistent does not exist"),
        ("model", "path", "/nonexistent", "the model folder /nonexistent does not exist"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(mapping, tmp_path, section, key, value, message):
    job = changed(mapping, **{section: {key: value}})
    with pytest.raises(BadInput, match=message):
        check_job(job)
    with pytest.raises(BadInput, match=message):
        train(job)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("StableDiffusionInpaintPipeline", r" \(an inpainting model; take the model that it was made from\)"), (None, "")],
)
def test_a_pipeline_of_no_supported_family_is_refused_by_its_class(mapping, untrained_model, tmp_path, name, reason):
    folder = tmp_path / "model"
    shutil.copytree(untrained_model, folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}), encoding="utf-8")
    with pytest.raises(BadInput, match=f"is a {name}{reason}, which is not supported; .*StableDiffusionPipeline"):
        check_job(changed(mapping, model={"path": str(folder)}))
    (folder / "model_index.json").unlink()
    with pytest.raises(BadInput, match=r"has no model_index\.json"):
        check_job(changed(mapping, model={"path": str(folder)}))


def test_a_model_folder_without_a_part_is_named(mapping, untrained_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(untrained_model, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BadInput, match=r"has weights in unet/ only as \w+\.bin, not as safetensors; convert it once"):
        check_job(changed(mapping, model={"path": str(folder)}))
    shutil.rmtree(folder / "unet")
    with pytest.raises(BadInput, match="has no unet"):
        check_job(changed(mapping, model={"path": str(folder)}))


@pytest.mark.parametrize("launched", [1, 2])
def test_another_number_of_ranks_is_refused_immediately(mapping, tmp_path, launched):
    job = changed(mapping, training={"world_size": 3})
    ranks = start_ranks(write_job(tmp_path / "job.yaml", job), launched)
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2] * launched
    assert f"error: the job asks for 3 ranks (training.world_size) but {launched} were started" in outputs[0]
    assert not Run(job.run_dir).folder.exists()


def test_a_run_resumed_at_its_end_ends_the_same(mapping):
    options = {"checkpointing_steps": 2}
    job = changed(mapping, training=options, validation={"steps": 1})
    facts = train(job)
    before = learned_rows(job)
    (Run(job.run_dir).finished).unlink()
    again = train(changed(mapping, training={**options, "resume_from_checkpoint": "latest"}, validation={"steps": 1}))
    assert torch.equal(learned_rows(job), before)
    assert again["validation_loss"] == facts["validation_loss"]
    assert again["initializer_loss"] == facts["initializer_loss"]


def test_checkpoints_of_an_unfinished_run_are_not_overwritten_by_default(mapping):
    job = changed(mapping, training={"checkpointing_steps": 1})
    train(job)
    Run(job.run_dir).finished.unlink()
    with pytest.raises(BadInput, match=r"checkpoints of an unfinished run; go on with .*auto"):
        train(job)
    assert (Run(job.run_dir).checkpoints / "step-000002").is_dir()


def test_a_refused_resume_leaves_a_finished_run_as_it_was(mapping):
    job = changed(mapping, training={"checkpointing_steps": 1})
    train(job)
    before = {p: p.stat().st_mtime_ns for p in Run(job.run_dir).folder.rglob("*")}
    options = {"checkpointing_steps": 1, "resume_from_checkpoint": "latest", "learning_rate": 1e-3}
    other = build(Job, {**mapping, "overwrite": True, "training": {**mapping["training"], **options}})
    with pytest.raises(BadInput, match=r"its learning_rate is 0.01, this job's is 0.001"):
        train(other)
    assert {p: p.stat().st_mtime_ns for p in Run(job.run_dir).folder.rglob("*")} == before


def test_fewer_triples_than_ranks(mapping, tmp_path):
    job = changed(mapping, training={"world_size": 2, "max_train_steps": 1}, validation={"steps": 1, "triples": 1})
    run_ranks(write_job(tmp_path / "job.yaml", job), 2)
    assert [m["step"] for m in read_metrics(Run(job.run_dir).metrics) if m["kind"] == "validation"] == [0, 1]


def test_what_changes_nothing_is_warned_of(mapping):
    """A prompt without the new token, and rates with which nothing that can be seen is learned."""
    job = changed(mapping, training={"learning_rate": 1e-9}, validation={"prompt": "a toy"})
    prompt, rate = check_job(job)
    assert prompt.startswith("validation.prompt: 'a toy' does not hold the new token <concept>")
    assert rate.startswith("training.learning_rate: 1e-09 moves what is learned by 2e-09 at most in 2 steps")
    assert check_job(changed(mapping, validation={"prompt": "a <concept>"})) == []


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_loaded(mapping, monkeypatch):
    """With figures, and the batch that might; the ranks of a host share its memory, and a cgroup's limit counts."""
    monkeypatch.setattr("sdtune.training.memory.available_bytes", lambda: 4_000_000_000)  # a fake
    check_job(changed(mapping, training={"train_batch_size": 100}))
    message = r"batch_size: 1000000 .* on 1 rank.* need at least [\d.]+ GB .* 4\.0 GB are free; take at most (\d+)"
    with pytest.raises(BadInput, match=message) as one:
        check_job(changed(mapping, training={"train_batch_size": 10**6}))
    monkeypatch.setenv("MPI_LOCALNRANKS", "2")
    with pytest.raises(BadInput, match=message.replace("1 rank", "2 rank")) as two:
        check_job(changed(mapping, training={"train_batch_size": 10**6}))
    fits = [int(re.search(r"at most (\d+)", str(error.value))[1]) for error in (one, two)]
    assert fits[1] < fits[0] / 2 < fits[0]
    monkeypatch.setenv("MPI_LOCALNRANKS", "20")  # the interpreters alone
    with pytest.raises(BadInput, match=r"take at most 9 rank\(s\) per host \(launch_config_ranks_per_node\)"):
        check_job(changed(mapping, training={"train_batch_size": 1}))
