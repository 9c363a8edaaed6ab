"""A new token together with LoRA adapters, and prior preservation."""

import shutil
from itertools import pairwise

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from sdtune.data.samples import CLASS_NUMBERS, Sampler
from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.methods.lora_files import load_diffusers
from sdtune.models.weights import cache_folder
from sdtune.settings import Job, build
from sdtune.training.checks import check_job
from sdtune.training.trainer import train
from tests.conftest import CLASS_PROMPT, learned_adapters, learned_rows, run_ranks, write_job


@pytest.fixture
def pivotal_job(mapping, tmp_path):
    """Makes small pivotal jobs, whose token is called like the run."""

    def make(name="run", **sections):
        new = {**mapping, "method": "pivotal", "run_dir": str(tmp_path / name)}
        defaults = {"data": {"placeholder_token": "<t>"}, "lora": {"rank": 4, "learning_rate": 1e-2}}
        for section in ("data", "training", "lora"):
            new[section] = {**mapping.get(section, {}), **defaults.get(section, {}), **sections.get(section, {})}
        return build(Job, new)

    return make


def test_a_token_learns_in_its_share_of_the_steps_and_adapters_in_all(pivotal_job):
    options = {"checkpointing_steps": 1, "checkpoints_total_limit": 9, "max_train_steps": 4}
    job = pivotal_job(training={**options, "save_as_full_pipeline": True})
    train(job)
    run = Run(job.run_dir)
    files = {path.name for path in run.folder.glob("*.safetensors")}
    assert files == {
        "learned_embeds.safetensors",
        "pytorch_lora_weights.safetensors",
        "t.safetensors",
        "t-lora.safetensors",
    }

    states = [load_file(path / "state.safetensors") for path in sorted(run.checkpoints.iterdir())]
    token = "text_encoder.embeddings"
    adapter = next(name for name in states[0] if name.endswith("lora_B"))
    changes = [
        [not torch.equal(before[name], after[name]) for before, after in pairwise(states)] for name in (token, adapter)
    ]
    assert changes == [[True, False, False], [True, True, True]]

    pipeline = StableDiffusionPipeline.from_pretrained(run.pipeline)
    [number] = pipeline.tokenizer.convert_tokens_to_ids(["<t>"])
    learned = learned_rows(job)[0]
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[number].detach(), learned)
    module, (a, b) = next(iter(load_diffusers(run.lora).networks["unet"].items()))
    base = StableDiffusionPipeline.from_pretrained(job.model.path).unet.get_submodule(module).weight
    torch.testing.assert_close(pipeline.unet.get_submodule(module).weight, base + b @ a)


def test_a_resumed_pivotal_run_ends_in_the_same_bits(pivotal_job, tmp_path):
    options = {"checkpointing_steps": 1, "max_train_steps": 3}
    whole = pivotal_job("whole", training=options)
    train(whole)
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    Run(tmp_path / "cut").finished.unlink()
    for late in ("step-000002", "step-000003"):
        shutil.rmtree(Run(tmp_path / "cut").checkpoints / late)
    resumed = pivotal_job("cut", training={**options, "resume_from_checkpoint": "latest"})
    train(resumed)
    assert torch.equal(learned_adapters(resumed), learned_adapters(whole))
    assert torch.equal(*(learned_rows(job) for job in (resumed, whole)))


def test_captions_of_pivotal_hold_the_token(pivotal_job):
    with pytest.raises(BadInput, match=r"instance_prompt: the caption does not hold the new token <t>: 'a toy'"):
        check_job(pivotal_job(data={"instance_prompt": "a toy"}))
    check_job(pivotal_job(data={"instance_prompt": "a photo of <t>"}))


# --- prior preservation ----------------------------------------------------------------------------------------------


def test_class_samples_are_drawn_apart_from_the_others():
    with_classes = Sampler(3, 5, 7, 1000, lambda _: (4, 8, 8), class_pictures=4, class_weight=0.5)
    assert torch.equal(with_classes(9).noise, Sampler(3, 5, 7, 1000, lambda _: (4, 8, 8))(9).noise)
    epoch = [with_classes.class_sample(n) for n in range(4)]
    assert sorted(sample.picture for sample in epoch) == [5, 6, 7, 8]
    assert [sample.number for sample in epoch] == [CLASS_NUMBERS + n for n in range(4)]
    assert not torch.equal(epoch[0].noise, with_classes(0).noise)
    assert with_classes.pictures_of(2)[1] == (epoch[2].picture, False)


def test_class_pictures_are_drawn_once_and_preserve_what_was_there(lora_job, tmp_path):
    """Two ranks share out the drawing; a second run draws nothing; the loss on class pictures counts."""
    prior = {"preservation": True, "class_prompt": CLASS_PROMPT, "num_class_images": 3}
    two = lora_job("two", prior=prior, training={"world_size": 2, "train_batch_size": 1, "adam_epsilon": 1e-3})
    run_ranks(write_job(tmp_path / "job.yaml", two), 2)
    [folder] = (cache_folder(two) / "class-pictures").iterdir()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert sorted(times) == ["00000.png", "00001.png", "00002.png"]
    one = lora_job("one", prior=prior, training={"adam_epsilon": 1e-3})
    train(one)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")} == times
    torch.testing.assert_close(learned_adapters(two), learned_adapters(one), rtol=1e-3, atol=1e-5)
    without = lora_job("without", training={"adam_epsilon": 1e-3})
    train(without)
    assert not torch.allclose(learned_adapters(without), learned_adapters(one), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"preservation": True}, "prior.class_prompt: prior preservation needs the caption of the class pictures"),
        ({"class_prompt": "a toy"}, "prior.preservation: it is off, but there are a class prompt or class pictures"),
        (
            {"preservation": True, "class_prompt": "a toy", "class_path": "pictures"},
            r"prior.class_path: .* holds 3 pictures, and 100 are asked for .*; add pictures, or ask for at most 3",
        ),
    ],
)
def test_what_is_wrong_with_prior_preservation_is_named(lora_job, pictures, prior, message):
    prior = {key: str(pictures) if value == "pictures" else value for key, value in prior.items()}
    with pytest.raises(BadInput, match=message):
        check_job(lora_job(prior=prior))
