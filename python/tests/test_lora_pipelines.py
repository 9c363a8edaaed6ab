"""From a LoRA run on the embedded model to pictures: diffusers, our export, and OpenVINO GenAI draw the same."""

from pathlib import Path

import numpy as np
import openvino_genai
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from sdtune.errors import BadInput
from sdtune.inference import export
from sdtune.inference.draw import draw_batch, load_generator
from sdtune.inference.plan import make_plan
from sdtune.launch.run_folder import Run
from sdtune.settings import GenerationJob, Job, build
from sdtune.training.trainer import train
from tests.conftest import PRECISION, REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")]
MODEL = REPOSITORY / "toyworld" / "model"
PROMPT = "a photo of a toy"
STEPS = 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run, whose OpenVINO copy has its adapters at weight 0: the base model, for tools that add them."""
    job = build(
        Job,
        {
            "run_name": "t",
            "method": "lora",
            "run_dir": str(tmp_path_factory.mktemp("runs") / "t"),
            "model": {"path": str(MODEL)},
            "data": {"path": str(REPOSITORY / "toyworld" / "concept"), "resolution": 64, "instance_prompt": PROMPT},
            "training": {"max_train_steps": 20, "train_batch_size": 4, "mixed_precision": PRECISION},
            "lora": {"learning_rate": 1e-3, "rank": 4, "alpha": 8.0, "targets": "attention+feed_forward"},
            "validation": {"steps": 20, "triples": 16, "reference_caption": "yellow toy"},
            "openvino": {"lora_weight": 0.0},
        },
    )
    facts = train(job)
    assert facts["validation_loss"] < facts["initializer_loss"]
    export.export(job)
    return job


def drawn(job, **values):
    """The picture of seed 1 as ``generate_images.py`` draws it."""
    asked = {"run_dir": job.run_dir, "prompts": [PROMPT], "seeds": [1], "num_inference_steps": STEPS, **values}
    asked = build(GenerationJob, {"guidance_scale": 2.0, "scheduler": "euler", **asked})
    plan = make_plan(asked)
    [png] = draw_batch(load_generator(asked, plan, 1), asked, plan, 0).values()
    path = Path(job.run_dir) / "drawn.png"
    path.write_bytes(png)
    with Image.open(path) as image:
        return np.asarray(image, float)


def test_diffusers_draws_the_same_from_either_file(trained):
    from diffusers import EulerDiscreteScheduler

    ours = drawn(trained, source="pipeline")
    for name in ("t.safetensors", "pytorch_lora_weights.safetensors"):
        pipeline = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        pipeline.load_lora_weights(trained.run_dir, weight_name=name)
        options = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "generator": torch.Generator().manual_seed(1)}
        image = pipeline(PROMPT, **options).images[0]
        assert np.abs(np.asarray(image, float) - ours).max() <= 1, name


def test_a_weight_is_chosen_by_the_export_or_by_the_generation(trained):
    with_lora = drawn(trained, source="pipeline")
    base = drawn(trained, source="model", model=str(MODEL))
    assert np.abs(with_lora - base).mean() > 5
    assert np.abs(drawn(trained) - base).mean() < 3  # stored in fp16
    assert np.abs(drawn(trained, source="pipeline", lora_weight=1e-9) - base).max() <= 1
    half = drawn(trained, source="pipeline", lora_weight=0.5)
    assert min(np.abs(half - other).mean() for other in (with_lora, base)) > 1
    with pytest.raises(BadInput, match=r"lora_weight: the OpenVINO copy .* has its LoRA at 0.0, not 0.5; export"):
        drawn(trained, lora_weight=0.5)


def test_openvino_genai_adds_our_adapters(trained):
    """To the base model, at the weight of 1, also where alpha is not the rank."""
    run = Run(trained.run_dir)
    adapter = openvino_genai.Adapter(str(run.folder / "t.safetensors"))
    pipeline = openvino_genai.Text2ImagePipeline(str(run.openvino))
    scheduler = openvino_genai.Scheduler
    config = run.openvino / "scheduler" / "scheduler_config.json"
    pipeline.set_scheduler(scheduler.from_config(str(config), scheduler.Type.EULER_DISCRETE))
    pipeline.reshape(1, 64, 64, 2.0)
    pipeline.compile("CPU", adapters=openvino_genai.AdapterConfig(adapter, 1.0), INFERENCE_PRECISION_HINT="f32")
    options = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "height": 64, "width": 64}
    image = pipeline.generate(PROMPT, generator=openvino_genai.TorchGenerator(1), **options)
    assert np.abs(np.array(image.data, float)[0] - drawn(trained, source="pipeline")).mean() < 1
