"""The seams of training: it depends on no model family and no method, and trains a fake of both."""

import ast
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import sdtune.training
from sdtune.launch.run_folder import Run
from sdtune.methods.method import Learned, Method
from sdtune.models.family import Networks
from sdtune.models.geometry import Geometry
from sdtune.settings import Job, build
from sdtune.training.metrics import read_metrics
from sdtune.training.trainer import Trainer

MODULES = sorted(Path(sdtune.training.__file__).parent.glob("*.py"))
FAMILIES_AND_METHODS = re.compile(
    r"sdtune\.(models\.(sd|sdxl|latent_diffusion|fast_unet|pipelines|denoising)|methods\.(textual_inversion|embedding|placeholder|formats))\b"
)


def imported(module):
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_training_depends_on_no_family_and_no_method(module):
    assert [name for name in imported(module) if FAMILIES_AND_METHODS.match(name)] == []
    text = module.read_text(encoding="utf-8")
    assert re.findall(r"(?i)placeholder|\brows?\b|tokenize|unet|clip", text) == []


class FakeNetworks(Networks):
    """A linear model of the latents with a bias for each caption, instead of a diffusion model."""

    geometry = Geometry(factor=8, channels=4, scaling_factor=1.0)
    num_timesteps = 10
    image_encoder_id = "fake"
    kind_in_files = "fake"
    text_encoders = {}  # noqa: RUF012

    def __init__(self):
        self.weight, self.bias = torch.zeros(4), torch.zeros(3, 4)

    def denoising_losses(self, batch, snr_gamma=None):
        bias = self.bias[[int(caption) for caption in batch.captions]]
        predicted = batch.latents * self.weight[:, None, None] + bias[..., None, None]
        return (predicted - batch.latents).square().mean(dim=(1, 2, 3))

    def encode_captions(self, captions):
        raise NotImplementedError

    def load_image_encoder(self):
        def encode(pixels):
            mean = nn.functional.avg_pool2d(pixels, 8)
            mean = torch.cat([mean, mean.mean(1, keepdim=True)], dim=1)
            return mean, torch.full_like(mean, -30.0)

        return encode

    def draw(self, prompt, seeds, resolution, guidance_scale):
        raise NotImplementedError


class FakeMethod(Method):
    """Two parameters with their own learning rates; a caption for each picture."""

    num_captions = 1

    @classmethod
    def check(cls, job, family):
        raise NotImplementedError

    @classmethod
    def caption_problems(cls, job, family):
        raise NotImplementedError

    @classmethod
    def example_prompts(cls, job):
        raise NotImplementedError

    def __init__(self, job, networks):
        networks.weight, networks.bias = nn.Parameter(networks.weight), nn.Parameter(networks.bias)
        self.learned = {
            "weight": Learned(parameter=networks.weight, learning_rate=0.1),
            "bias": Learned(parameter=networks.bias, learning_rate=0.01),
        }

    def caption(self, sample):
        return str(sample.picture)

    def validation_caption(self, picture):
        return "0"

    def reference_caption(self, description):
        return description

    def expand_prompt(self, prompt):
        raise NotImplementedError

    def save(self, run, facts):
        torch.save({name: x.parameter.detach() for name, x in self.learned.items()}, run.folder / "fake.pt")
        return [run.folder / "fake.pt"]

    def save_pipeline(self, run, model):
        raise NotImplementedError


def fit(mapping, run_dir, steps, **training):
    options = {**mapping["training"], "max_train_steps": steps, "lr_scheduler": "constant", **training}
    changed = {**mapping, "run_dir": str(run_dir), "training": options, "validation": {"steps": 1, "triples": 6}}
    job = build(Job, changed)
    networks = FakeNetworks()
    method = FakeMethod(job, networks)
    facts = Trainer(job, Accelerator(cpu=True), networks, method, {"fake": True}, time.perf_counter()).fit()
    return facts, torch.load(Run(run_dir).folder / "fake.pt")


def test_a_fake_family_and_method_learn_and_resume_bit_exactly(mapping, tmp_path):
    mapping["training"] |= {"checkpointing_steps": 2, "report_to": "none"}
    facts, learned = fit(mapping, tmp_path / "whole", 6)
    assert facts["validation_loss"] < facts["initializer_loss"]
    assert learned["weight"].abs().max() > 5 * learned["bias"].abs().max() > 0  # each has its own learning rate
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    Run(tmp_path / "cut").finished.unlink()
    shutil.rmtree(Run(tmp_path / "cut").checkpoints / "step-000006")
    resumed_facts, resumed = fit(mapping, tmp_path / "cut", 6, resume_from_checkpoint="latest")
    assert resumed_facts["validation_loss"] == facts["validation_loss"]
    assert resumed_facts["initializer_loss"] == facts["initializer_loss"]
    assert all(torch.equal(resumed[name], learned[name]) for name in ("weight", "bias"))
    steps = [m["step"] for m in read_metrics(Run(tmp_path / "cut").metrics) if m["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]
