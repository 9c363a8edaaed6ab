"""Job files and flags."""

import argparse

import pytest

from sdtune.errors import BadInput
from sdtune.settings.job import GenerationJob, Job, add_job_flags, build, job_from_flags, read_yaml, training_job

MINIMAL = {"run_name": "r", "run_dir": "/r", "model": {"path": "/m"}, "data": {"path": "/d"}}


def with_(section, **values):
    return {**MINIMAL, section: {**MINIMAL.get(section, {}), **values}}


def test_defaults_fill_what_is_not_said():
    job = build(Job, MINIMAL)
    assert job.training.mixed_precision == "bf16"
    assert job.openvino.height is None


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({**MINIMAL, "sead": 1}, "unknown job key sead; did you mean seed"),
        (
            with_("training", learning_rat=1),
            "unknown job key training.learning_rat; did you mean training.learning_rate",
        ),
        ({k: v for k, v in MINIMAL.items() if k != "model"}, "the job lacks model"),
        ({**MINIMAL, "model": {}}, "the job lacks model.path"),
        ({**MINIMAL, "data": "pictures"}, "data: 'pictures' is not a mapping"),
        (with_("training", max_train_steps="ten"), "training.max_train_steps: 'ten' is not a whole number"),
        (with_("training", max_train_steps=True), "training.max_train_steps: True is not a whole number"),
        (with_("training", max_train_steps=0), "training.max_train_steps: 0 is less than 1"),
        (with_("training", learning_rate="fast"), "training.learning_rate: 'fast' is not a number"),
        (with_("training", learning_rate=0.0), "training.learning_rate: 0.0 has to be above 0"),
        (with_("training", mixed_precision=False), "write it in quotes"),
        (with_("training", mixed_precision="fp16"), "'fp16' is not one of bf16, no"),
        (with_("training", backend="nccl"), "training.backend: 'nccl' is not one of gloo, mpi, ccl"),
        (with_("training", lr_scheduler="sine"), "training.lr_scheduler: 'sine' is not one of"),
        (with_("data", learnable_property="mood"), "data.learnable_property: 'mood' is not one of object, style"),
        (with_("data", placeholder_token="my toy"), "has to be one word"),
        (with_("openvino", height=100), "openvino.height: 100 is not a multiple of 8"),
        (with_("openvino", batch_size=0), "openvino.batch_size: 0 is less than 1"),
        (with_("openvino", weights="int3"), "'int3' is not one of fp16, fp32"),
        ({**MINIMAL, "run_name": "../x"}, "run_name: '../x' may only hold"),
        ([1], "is not a mapping"),
    ],
)
def test_what_is_wrong_is_named(mapping, message):
    with pytest.raises(BadInput, match=message.replace("(", r"\(")):
        build(Job, mapping)


def test_a_rate_without_a_dot_is_a_number():
    assert build(Job, with_("training", learning_rate="1e-4")).training.learning_rate == 1e-4


def test_files_that_are_no_jobs(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        read_yaml(tmp_path / "none.yaml", Job)
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1", encoding="utf-8")
    with pytest.raises(BadInput, match="is no YAML"):
        read_yaml(bad, Job)


def test_a_generation_needs_prompts():
    with pytest.raises(BadInput, match="prompts is empty"):
        build(GenerationJob, {"run_dir": "/r"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheduler": "magic"}, "scheduler: 'magic' is not one of pndm, ddim, dpmsolver++"),
        ({"height": 100}, "height: 100 is not a multiple of 8"),
        ({"guidance_start": 0.5, "guidance_stop": 0.5}, "0.5 to 0.5 is no part of 0 to 1"),
        ({"guidance_stop": 1.5}, "0.0 to 1.5 is no part of 0 to 1"),
        ({"precision": "int8"}, "'int8' is not one of f32, bf16"),
        ({"processes": -1}, "processes: -1 is negative"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 is less than 1"),
        ({"prompts": [" "]}, "prompts holds an empty prompt"),
        ({"seeds": []}, "seeds is empty"),
    ],
)
def test_what_is_wrong_with_a_generation_is_named(values, message):
    with pytest.raises(BadInput, match=message.replace("+", r"\+")):
        build(GenerationJob, {"run_dir": "/r", "prompts": ["x"], **values})


def test_flags_of_the_well_known_script():
    parser = argparse.ArgumentParser()
    add_job_flags(parser)
    words = (
        "--pretrained_model_name_or_path /m --train_data_dir /d --learnable_property style --placeholder_token <x> "
        "--initializer_token cat --resolution 64 --train_batch_size 4 --seed 7 --gradient_accumulation_steps 2 "
        "--max_train_steps 9 --learning_rate 5.0e-4 --scale_lr --lr_scheduler cosine --lr_warmup_steps 3 "
        "--output_dir /out/toy --mixed_precision no --save_as_full_pipeline --num_vectors 2 "
        "--resume_from_checkpoint latest --validation_prompt p"
    )
    job = job_from_flags(parser.parse_args(words.split()))
    assert (job.run_name, job.run_dir, job.seed, job.model.path) == ("toy", "/out/toy", 7, "/m")
    assert (job.data.learnable_property, job.data.num_vectors, job.data.resolution) == ("style", 2, 64)
    assert (job.training.scale_lr, job.training.mixed_precision, job.training.lr_warmup_steps) == (True, "no", 3)
    assert (job.training.resume_from_checkpoint, job.validation.prompt) == ("latest", "p")


def test_a_flag_that_is_missing_is_named():
    parser = argparse.ArgumentParser()
    add_job_flags(parser)
    with pytest.raises(BadInput, match="--train_data_dir is needed"):
        job_from_flags(parser.parse_args(["--pretrained_model_name_or_path", "/m"]))


def test_job_file_and_flags_exclude_each_other():
    with pytest.raises(BadInput, match="--job and --seed exclude each other"):
        training_job(["--job", "x.yaml", "--seed", "3"], "")


def test_leave_to_overwrite_goes_with_a_job_file(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("{run_name: r, run_dir: /r, model: {path: /m}, data: {path: /d}}", encoding="utf-8")
    assert training_job(["--job", str(file)], "")[0].overwrite is False
    assert training_job(["--job", str(file), "--overwrite"], "")[0].overwrite is True
