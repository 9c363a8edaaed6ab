"""A new token together with LoRA adapters."""

import shutil
from itertools import pairwise

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.methods.lora_files import load_diffusers
from sdtune.settings import Job, build
from sdtune.training.checks import check_job
from sdtune.training.trainer import train
from tests.conftest import learned_adapters, learned_rows


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
