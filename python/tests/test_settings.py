"""One declaration of every setting; job files, flags, and the files that are generated from it."""

import argparse
import re
import typing
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Annotated

import pytest
import yaml

from sdtune.errors import BadInput
from sdtune.inference.generator import SCHEDULERS
from sdtune.settings import (
    GenerationJob,
    Job,
    SchedulerName,
    add_job_flags,
    build,
    job_from_flags,
    read_yaml,
    to_mapping,
    training_job,
)
from sdtune.settings.__main__ import BEGIN, END, replace_block, update
from sdtune.settings.ansible import JOBS, job_data, job_variables, role_defaults, role_options
from sdtune.settings.bounds import Between, Ge, Gt, Multiple, Pattern
from sdtune.settings.diffusers_flags import OTHER_DEFAULTS, OTHER_FLAGS
from sdtune.settings.fields import Settings, sections_of, settings_of
from sdtune.settings.flags import errors_name_flags, job_flags
from sdtune.settings.load import convert
from tests.conftest import REPOSITORY

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
        ({**MINIMAL, "run_name": "../x"}, "run_name: '../x' has to be 1 to 100 letters (A to Z), digits, dots"),
        ({**MINIMAL, "seed": -1}, "seed: -1 is not between 0 and 2^63-1"),
        (with_("training", adam_beta1=1.0), "training.adam_beta1: 1.0 is not at least 0 and below 1"),
        (with_("training", lr_warmup_steps=-1), "training.lr_warmup_steps: -1 is negative"),
        (with_("training", snr_gamma=0), "training.snr_gamma: 0.0 has to be above 0"),
        (with_("training", learning_rate=float("nan")), "training.learning_rate: nan is no finite number"),
        (with_("data", initializer_token=" "), "data.initializer_token: ' ' has to be a word of the vocabulary"),
        (
            {**MINIMAL, "validation": {"steps": 0, "early_stopping_patience": 1}},
            "validation.early_stopping_patience: without validation",
        ),
        ([1], "is not a mapping"),
    ],
)
def test_what_is_wrong_is_named(mapping, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        build(Job, mapping)


def test_a_rate_without_a_dot_is_a_number():
    assert build(Job, with_("training", learning_rate="1e-4")).training.learning_rate == 1e-4


def test_files_that_are_no_jobs(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        read_yaml(tmp_path / "none.yaml", Job)
    with pytest.raises(BadInput, match="is a folder"):
        read_yaml(tmp_path, Job)
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1", encoding="utf-8")
    with pytest.raises(BadInput, match="is not valid YAML"):
        read_yaml(bad, Job)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_name: a\nrun_name: b", "the key run_name is there twice"),
        ("training: {max_train_steps: 5, max_train_steps: 6}", "the key max_train_steps is there twice"),
        ("training: {max_train_steps: 0777}", "training.max_train_steps: '0777' is not a whole number"),
        ("training: {max_train_steps: 1:30}", "training.max_train_steps: '1:30' is not a whole number"),
        ("training: {max_train_steps: 0x10}", "training.max_train_steps: '0x10' is not a whole number"),
        ("training: {adam_epsilon: 1:30.5}", "training.adam_epsilon: '1:30.5' is not a number"),
        ('validation: {prompt: "a\\u2028b"}', "validation.prompt: 'a\\u2028b' holds the character '\\u2028'"),
    ],
)
def test_yaml_is_read_as_people_mean_it(tmp_path, text, message):
    file = tmp_path / "job.yaml"
    rest = {key: value for key, value in MINIMAL.items() if not text.startswith(key)}
    file.write_text(f"{yaml.safe_dump(rest)}{text}\n", encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(message)):
        read_yaml(file, Job)


def test_a_date_is_text(tmp_path):
    """YAML makes one of 2024-01-31, and Ansible hands it on as such."""
    for run_name in ("2024-01-31", date(2024, 1, 31)):
        assert build(Job, {**MINIMAL, "run_name": run_name}).run_name == "2024-01-31"
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, "run_name": date(2024, 1, 31)}), encoding="utf-8")
    assert read_yaml(file, Job).run_name == "2024-01-31"


@pytest.mark.parametrize("character", "\u00ad\u200b\u200e\u202e\u2060\ufeff\u00a0\t")
def test_a_new_word_holds_nothing_that_cannot_be_seen(character):
    with pytest.raises(BadInput, match=r"placeholder_token: '.*\\.*' has to be one word"):
        build(Job, {**MINIMAL, "data": {**MINIMAL["data"], "placeholder_token": f"<toy>{character}"}})


def test_a_path_is_short_enough_for_the_files_in_it():
    with pytest.raises(BadInput, match=r"run_dir: /abcdefgh.* is 5400 bytes long, and a path here has at most 3584"):
        build(Job, {**MINIMAL, "run_dir": "/abcdefgh" * 600})


def test_a_generation_needs_prompts():
    with pytest.raises(BadInput, match="prompts is empty"):
        build(GenerationJob, {"run_dir": "/r"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheduler": "magic"}, "scheduler: 'magic' is not one of pndm, ddim, dpmsolver++"),
        ({"height": 100}, "height: 100 is not a multiple of 8"),
        ({"guidance_start": 0.5, "guidance_stop": 0.5}, "0.5 to 0.5 is not an interval within 0 and 1"),
        ({"guidance_stop": 1.5}, "guidance_stop: 1.5 is more than 1"),
        ({"precision": "int8"}, "'int8' is not one of f32, bf16"),
        ({"processes": -1}, "processes: -1 is negative"),
        ({"scheduler": "lcm", "num_inference_steps": 60}, "60 is more than the scheduler lcm has, which is 50"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 is less than 1"),
        ({"num_inference_steps": 999}, "num_inference_steps: 999 is more than 500"),
        ({"quality": "best"}, "quality: 'best' is not one of exact, fast, draft"),
        ({"cache_interval": 0}, "cache_interval: 0 is less than 1"),
        ({"cache_interval": 26}, "cache_interval: 26 is above num_inference_steps (25); lower it, or set it to 1"),
        (
            {"quality": "fast", "num_inference_steps": 1},
            "(that of the quality fast) is above num_inference_steps (1)",
        ),
        ({"cache_branch": -1, "cache_interval": 2}, "cache_branch: -1 is negative"),
        ({"cache_branch": 1}, "cache_branch: 1 is of no use without cached features"),
        (
            {"cache_interval": 2, "source": "pipeline"},
            "2 needs the source openvino, and this is pipeline",
        ),
        ({"quality": "fast", "source": "model"}, "(that of the quality fast) needs the source openvino"),
        ({"prompts": [" "]}, "prompts holds an empty prompt"),
        ({"seeds": []}, "seeds is empty"),
    ],
)
def test_what_is_wrong_with_a_generation_is_named(values, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        build(GenerationJob, {"run_dir": "/r", "prompts": ["x"], **values})


def test_a_quality_gives_what_the_job_does_not_set_itself():
    def of(**values):
        return build(GenerationJob, {"run_dir": "/r", "prompts": ["x"], **values}).denoising

    fast = of(quality="fast")
    assert of(quality="fast", num_inference_steps=7, cache_interval=1) == replace(
        fast, num_inference_steps=7, cache_interval=1
    )
    assert of(quality="exact", **asdict(fast)) == fast
    assert len({of(), fast, of(quality="draft")}) == 3


def test_flags_of_diffusers_script():
    parser = argparse.ArgumentParser()
    add_job_flags(parser, "textual_inversion")
    words = (
        "--pretrained_model_name_or_path /m --train_data_dir /d --learnable_property style --placeholder_token <x> "
        "--initializer_token cat --resolution 64 --train_batch_size 4 --seed 7 --gradient_accumulation_steps 2 "
        "--max_train_steps 9 --learning_rate 5.0e-4 --scale_lr --lr_scheduler cosine --lr_warmup_steps 3 "
        "--output_dir /out/toy --mixed_precision no --save_as_full_pipeline --num_vectors 2 "
        "--resume_from_checkpoint latest --validation_prompt p"
    )
    job = job_from_flags(parser.parse_args(words.split()), "textual_inversion")
    assert (job.run_name, job.run_dir, job.seed, job.model.path) == ("toy", "/out/toy", 7, "/m")
    assert (job.data.learnable_property, job.data.num_vectors, job.data.resolution) == ("style", 2, 64)
    assert (job.training.scale_lr, job.training.mixed_precision, job.training.lr_warmup_steps) == (True, "no", 3)
    assert (job.training.resume_from_checkpoint, job.validation.prompt) == ("latest", "p")


def test_a_flag_that_is_missing_is_named():
    parser = argparse.ArgumentParser()
    add_job_flags(parser, "textual_inversion")
    with pytest.raises(BadInput, match="--train_data_dir is required"):
        job_from_flags(
            parser.parse_args(["--pretrained_model_name_or_path", "/m", "--output_dir", "/r"]), "textual_inversion"
        )


def test_job_file_and_flags_exclude_each_other():
    with pytest.raises(BadInput, match="--job and --seed exclude each other"):
        training_job(["--job", "x.yaml", "--seed", "3"], "", "textual_inversion")


def test_leave_to_overwrite_goes_with_a_job_file(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("{run_name: r, run_dir: /r, model: {path: /m}, data: {path: /d}}", encoding="utf-8")
    assert training_job(["--job", str(file)], "", "textual_inversion")[0].overwrite is False
    assert training_job(["--job", str(file), "--overwrite"], "", "textual_inversion")[0].overwrite is True


def test_an_earlier_release_s_key_is_read():
    job = build(Job, with_("training", stall_timeout=7))
    assert job.training.collective_timeout == 7
    assert build(Job, to_mapping(job)) == job
    with pytest.raises(BadInput, match=r"unknown job key training\.stall_timeout"):
        build(Job, with_("training", stall_timeout=7, collective_timeout=8))


@pytest.mark.parametrize("name", ["r", "7", "a.b-c_D", "x" * 100])
def test_run_names(name):
    assert build(Job, {**MINIMAL, "run_name": name}).run_name == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a b", "a/b", "\u00e4", "a\u0661", "a\n", "x" * 101])
def test_run_names_that_python_and_the_playbooks_refuse(name):
    """By the same rule; Jinja's ``match`` is re.match."""
    with pytest.raises(BadInput, match="run_name"):
        build(Job, {**MINIMAL, "run_name": name})
    constants = yaml.safe_load((REPOSITORY / "roles/cluster/vars/main.yml").read_text(encoding="utf-8"))
    assert re.match(constants["cluster_name_pattern"], name) is None
    assert constants["cluster_name_rule"].startswith("1 to 100 letters")


# --- declarations --------------------------------------------------------------------------------------------------

SECTIONS = [cls for job in JOBS.values() for cls in sections_of(job)]


@pytest.mark.parametrize("setting", [s for cls in SECTIONS for s in settings_of(cls)], ids=lambda s: s.key)
def test_every_setting_has_a_meaning(setting):
    assert setting.meaning.endswith("."), setting.key


ENDLESS = {"seed", "seeds"}
"""Numbers that count nothing: any is as good as another."""


@pytest.mark.parametrize(
    "setting",
    [s for cls in SECTIONS for s in settings_of(cls) if s.kind in (int, float) or s.kind == list[int]],
    ids=lambda s: s.key,
)
def test_every_number_has_an_end(setting):
    """So that a slip of the finger is refused, instead of eating memory, or failing in arithmetic."""
    wrap = (lambda value: value) if setting.kind in (int, float) else (lambda value: [value])
    for value in (10**9, 1e300, -1e300, 2**64):
        allowed = True
        try:
            allowed = not setting.complaint(convert(wrap(value), setting.kind, setting.key))
        except BadInput:
            allowed = False
        assert allowed == (value == 10**9 and setting.name in ENDLESS), value


def test_every_scheduler_has_its_class():
    assert tuple(SCHEDULERS) == typing.get_args(SchedulerName)


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    """A section that declares one setting of each kind of bound."""

    count: Annotated[int, Ge(2)] = 2
    """A count."""
    rate: Annotated[float | None, Gt(0)] = None
    """A rate. Unset: none."""
    share: Annotated[float, Between(0, 1)] = 1.0
    """A share."""
    side: Annotated[int, Multiple(8)] = 8
    """A side,
    on two lines."""
    word: Annotated[str, Pattern("[a-z]+", "be lower case")] = "a"
    """A word."""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1}, "count: 1 is less than 2"),
        ({"rate": 0.0}, "rate: 0.0 has to be above 0"),
        ({"share": 1.5}, "share: 1.5 is not between 0 and 1"),
        ({"share": float("nan")}, "share: nan is no finite number"),
        ({"side": 12}, "side: 12 is not a multiple of 8"),
        ({"side": 0}, "side: 0 is not above 0"),
        ({"word": "aB"}, "word: 'aB' has to be lower case"),
        ({"word": "a\n"}, "word: 'a\\n' has to be lower case"),
    ],
)
def test_bounds_refuse_with_the_name_and_the_value(values, message):
    """Also where the dataclass is made or changed in Python."""
    for make in (lambda: build(Example, values), lambda: Example(**values), lambda: replace(Example(), **values)):
        with pytest.raises(BadInput) as refused:
            make()
        assert str(refused.value) == message


def test_what_a_field_declares_can_be_read():
    count, rate, _, side, _ = settings_of(Example)
    assert (count.meaning, count.described()) == ("A count.", "A count. At least 2.")
    assert (rate.kind, rate.optional, rate.default) == (float, True, None)
    assert rate.described("0") == "A rate. 0: none."
    assert side.meaning == "A side, on two lines."


# --- flags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "rate"), [("textual_inversion", "0.005"), ("lora", "0.0001")])
def test_every_flag_has_its_meaning_and_default(capsys, method, rate):
    with pytest.raises(SystemExit):
        training_job(["--help"], "", method)
    text = " ".join(capsys.readouterr().out.split())
    for flag, setting in job_flags(method).items():
        after = text.rpartition(f" --{flag} ")[2] or text.rpartition(f" --{flag}, ")[2]
        assert setting.meaning.replace("``", "")[:40] in after, flag
        assert "Default: " in after, flag
    assert re.search(rf"--learning_rate X Learning rate of AdamW[^.]*\..{{0,99}}Default: {rate}\.", text)


OF_LORA = [
    "--pretrained_model_name_or_path", "/m", "--instance_data_dir", "/d", "--instance_prompt", "a photo of sks dog",
    "--output_dir", "/r", "--max_train_steps", "5",
]  # fmt: skip


OF_SCRIPT = """
pretrained_model_name_or_path revision variant tokenizer_name instance_data_dir class_data_dir instance_prompt
class_prompt validation_prompt num_validation_images validation_epochs with_prior_preservation prior_loss_weight
num_class_images output_dir seed resolution center_crop train_text_encoder train_batch_size sample_batch_size
num_train_epochs max_train_steps checkpointing_steps checkpoints_total_limit resume_from_checkpoint
gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles
lr_power dataloader_num_workers use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm
push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to mixed_precision prior_generation_precision
local_rank enable_xformers_memory_efficient_attention pre_compute_text_embeddings tokenizer_max_length
text_encoder_use_attention_mask validation_images class_labels_conditioning rank
"""


def test_each_flag_of_diffusers_script_is_a_setting_or_is_answered():
    """All flags of train_dreambooth_lora.py: none is unknown, and none is passed over silently."""
    assert {flag for flag in OF_SCRIPT.split() if flag not in job_flags("lora")} <= set(OTHER_FLAGS)
    assert not set(OTHER_FLAGS) & {*job_flags("lora"), *job_flags("textual_inversion")}
    for flag, other in OTHER_FLAGS.items():
        argv = [*OF_LORA, f"--{flag}", *([] if other.switch else ["7"])]
        if other.refused:
            with pytest.raises(BadInput, match=f"^--{flag}: "):
                training_job(argv, "", "lora")
        else:
            assert training_job(argv, "", "lora")[1].passed_over[0].startswith(f"--{flag} has no effect: ")
    assert training_job([*OF_LORA, "--lr_power", "1"], "", "lora")[1].passed_over[1:] == []


def test_defaults_that_differ_from_diffusers_script_are_told_where_they_count():
    [told] = training_job(OF_LORA, "", "lora")[1].passed_over
    assert told.endswith("(its own): --rank (4), --train_batch_size (4), --learning_rate (5e-4)")
    for flag, theirs in OTHER_DEFAULTS["lora"].items():
        assert str(job_flags("lora")[flag].default) != theirs
    ours = ["--rank", "4", "--train_batch_size", "1", "--learning_rate", "1e-4"]
    assert training_job([*OF_LORA, *ours], "", "lora")[1].passed_over == []


def test_errors_name_the_flags_that_were_typed():
    """Those of settings, and those that come later, from the model and the pictures."""
    with pytest.raises(BadInput, match=r"^--rank: 0 is less than 1"):
        training_job([*OF_LORA, "--rank", "0"], "", "lora")
    with pytest.raises(BadInput, match=r"^--num_class_images: "):
        training_job([*OF_LORA, "--num_class_images", "0"], "", "lora")
    later = pytest.raises(BadInput, match=r"^--lora_layers: /m/lora.rank has no projection; lower --rank$")
    with later, errors_name_flags("lora"):
        raise BadInput("lora.targets: /m/lora.rank has no projection; lower lora.rank")
    with pytest.raises(BadInput, match="--job and --push_to_hub exclude each other"):
        training_job(["--job", "x.yaml", "--push_to_hub"], "", "lora")


def test_flags_a_file_and_a_role_make_the_same_job(tmp_path):
    """Of what is not said: each takes the defaults of the one declaration."""
    parser = argparse.ArgumentParser()
    add_job_flags(parser, "textual_inversion")
    words = "--pretrained_model_name_or_path /m --train_data_dir /d --output_dir /r --run_name r"
    from_flags = job_from_flags(parser.parse_args(words.split()), "textual_inversion")
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    from_role = build(Job, job_data(templated("training", **MINIMAL)))
    assert from_flags == read_yaml(file, Job) == from_role


# --- generated files -----------------------------------------------------------------------------------------------


def templated(kind, **derived):
    """The generated map of variables as Ansible templates it with the roles' defaults.

    What the playbooks derive is the value that is given, or is left out.
    """
    defaults = {}
    for role in ("training", "openvino_export", "image_generation"):
        defaults |= yaml.safe_load((REPOSITORY / f"roles/{role}/defaults/main.yml").read_text(encoding="utf-8"))

    def fill(mapping, given):
        values = {}
        for name, value in mapping.items():
            if isinstance(value, dict):
                values[name] = fill(value, given.get(name, {}))
            elif name in given:
                values[name] = given[name]
            elif (variable := value.strip("{ }")) in defaults:
                values[name] = defaults[variable]
        return values

    return fill(job_variables(JOBS[kind]), derived)


def test_generated_files_are_in_step():
    assert update(REPOSITORY, write=False) == [], "run make settings"


def test_generated_yaml_is_what_was_declared():
    """Defaults and options say the same, and the loss of no quote changes a value."""
    defaults = yaml.safe_load("\n".join(role_defaults("training")))
    options = yaml.safe_load("\n".join(role_options("training")))
    assert defaults == {name: option["default"] for name, option in options.items()}
    assert defaults["training_learning_rate"] == build(Job, MINIMAL).training.learning_rate
    assert options["training_mixed_precision"]["choices"] == ["auto", "bf16", "no"]
    assert options["training_snr_gamma"]["type"] == "float"


def test_a_block_is_replaced_between_its_marks():
    text = f"a\n  {BEGIN}\n  old\n  {END}\nb\n"
    assert replace_block(text, ["  new"]) == f"a\n  {BEGIN}\n  new\n  {END}\nb\n"
    with pytest.raises(ValueError, match="marks are missing"):
        replace_block("a\n", [])


def test_a_generation_of_the_role_s_defaults():
    values = templated("generation", run_dir="/r", prompts=["x"], precision="bf16")
    assert build(GenerationJob, job_data(values, "generation")) == GenerationJob(
        run_dir="/r", prompts=["x"], precision="bf16"
    )
