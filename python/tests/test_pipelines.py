"""From the embedded model to pictures: what diffusers, OpenVINO and a reader of the files find."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from sdtune import openvino
from sdtune.checks import check_job
from sdtune.config import GenerationJob, Job, build
from sdtune.embedding import load_rows
from sdtune.errors import BadInput
from sdtune.generation import generate
from sdtune.pipelines import save_full_pipeline
from sdtune.runs import Run
from sdtune.trainer import train
from tests.conftest import REPOSITORY

# torch's tracer remarks on every shape that the export makes static
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")]
MODEL = REPOSITORY / "toyworld" / "model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short real run on the embedded model with a word of two vectors, exported for two prompts at once."""
    job = build(
        Job,
        {
            "run_name": "t",
            "run_dir": str(tmp_path_factory.mktemp("runs") / "t"),
            "model": {"path": str(MODEL)},
            "data": {"path": str(REPOSITORY / "toyworld" / "concept"), "resolution": 64, "num_vectors": 2},
            "training": {"max_train_steps": 8, "train_batch_size": 4, "learning_rate": 5e-3},
            "validation": {"steps": 8, "triples": 16, "prompt": "a photo of a <dicoo>", "num_images": 1},
            "openvino": {"batch_size": 2},
        },
    )
    train(job)
    assert openvino.export(job) == openvino.shape_of(job)
    return job


def test_validation_pictures_are_drawn_before_and_after(trained):
    names = sorted(p.name for p in Run(trained.run_dir).validation.iterdir())
    assert names == ["step-000000", "step-000000.png", "step-000008", "step-000008.png"]
    before, after = (Run(trained.run_dir).validation / step / "seed-1.png" for step in ("step-000000", "step-000008"))
    assert before.read_bytes() != after.read_bytes()


def test_diffusers_loads_the_learned_word(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipeline.load_textual_inversion(str(Run(trained.run_dir).learned))
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<dicoo>", "<dicoo>_1"])
    rows = load_rows(Run(trained.run_dir).learned)[1]
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[ids].detach(), rows)
    assert pipeline.maybe_convert_prompt("a <dicoo>", pipeline.tokenizer) == "a <dicoo> <dicoo>_1"


def test_diffusers_loads_the_saved_pipeline_and_nothing_else_changed(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(Run(trained.run_dir).pipeline)
    base = StableDiffusionPipeline.from_pretrained(MODEL)
    assert pipeline.text_encoder.dtype == torch.float32
    old = base.text_encoder.get_input_embeddings().weight
    new = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old)
    assert torch.equal(new[len(old) :].detach(), load_rows(Run(trained.run_dir).learned)[1])
    for part in ("unet", "vae"):
        name = "diffusion_pytorch_model.safetensors"
        assert (Run(trained.run_dir).pipeline / part / name).read_bytes() == (MODEL / part / name).read_bytes()
    image = pipeline("a photo of a <dicoo> <dicoo>_1", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


def test_no_file_of_a_run_can_hold_code(trained):
    files = [p for s in ("bin", "pt", "ckpt", "pkl") for p in Run(trained.run_dir).folder.rglob(f"*.{s}")]
    # OpenVINO's weights are named .bin too, but are plain arrays that its .xml describes
    assert [p for p in files if not (p.name == "openvino_model.bin" and p.with_suffix(".xml").exists())] == []


def test_the_openvino_copy_is_static_after_reload(trained):
    pipeline = openvino.load_static(Run(trained.run_dir).openvino, compile_models=False)
    shapes = {
        f"{name}.{port.any_name}": list(port.get_partial_shape().to_shape())
        for name, model in pipeline.ov_models.items()
        for port in model.inputs
    }
    assert shapes["unet.sample"] == [4, 4, 8, 8]  # two prompts, guided and not
    assert shapes["vae_decoder.latent_sample"] == [2, 4, 8, 8]
    assert openvino.static_shape(pipeline).batch_size == 2


def test_a_dynamic_copy_is_refused(trained, tmp_path):
    from optimum.intel import OVStableDiffusionPipeline

    dynamic = OVStableDiffusionPipeline.from_pretrained(Run(trained.run_dir).openvino, compile=False)
    dynamic.save_pretrained(tmp_path / "dynamic")
    with pytest.raises(BadInput, match="is dynamic; export the run again"):
        openvino.load_static(tmp_path / "dynamic")


def generation(trained, **values):
    defaults = {"run_dir": trained.run_dir, "prompts": ["a photo of a <dicoo>"], "num_inference_steps": 3}
    return build(GenerationJob, {**defaults, **values})


def test_pictures_tell_how_they_were_made(trained, capsys):
    prompts = ["a photo of a <dicoo>", "a photo of a toy", "a <dicoo> in the snow"]
    files = generate(generation(trained, prompts=prompts, seeds=[1, 2]))
    assert [f.name for f in files][:2] == ["0000-seed1.png", "0001-seed2.png"]
    assert len(files) == 7
    assert files[-1].name == "contact_sheet.png"
    facts = Image.open(files[5]).text
    assert facts["prompt"] == "a <dicoo> in the snow"
    assert (json.loads(facts["seed"]), json.loads(facts["num_inference_steps"])) == (2, 3)
    assert "warning: the prompt 'a photo of a toy' does not hold the learned word <dicoo>" in capsys.readouterr().out
    assert not list(Run(trained.run_dir).folder.glob(".*"))


def test_a_picture_does_not_depend_on_what_is_drawn_with_it(trained):
    def picture(seeds):
        file = next(f for f in generate(generation(trained, seeds=seeds)) if f.name.endswith("seed7.png"))
        return np.asarray(Image.open(file), float)

    assert np.abs(picture([7]) - picture([1, 7])).mean() < 2


def test_both_sources_draw_the_same(trained):
    def picture(source):
        job = generation(trained, source=source, seeds=[3], guidance_scale=2.0)
        return np.asarray(Image.open(generate(job)[0]), float)

    # the copy computes in bfloat16 where it can, and guidance enlarges the difference
    assert np.abs(picture("openvino") - picture("pipeline")).mean() < 8


def test_generation_without_a_run_is_refused(tmp_path, trained):
    with pytest.raises(BadInput, match=r"learned_embeds\.safetensors does not exist; train the run first"):
        generate(GenerationJob(run_dir=str(tmp_path), prompts=["x"]))
    with pytest.raises(BadInput, match="is no guidance"):
        generate(generation(trained, guidance_scale=1.0))


def test_the_embedded_model_accepts_its_default_job(tmp_path):
    mapping = {
        "run_name": "d",
        "run_dir": str(tmp_path / "d"),
        "model": {"path": str(MODEL)},
        "data": {"path": str(REPOSITORY / "toyworld" / "concept"), "resolution": 64},
    }
    job = build(Job, mapping)
    check_job(job)
    assert build(Job, asdict(job)) == job
    weights = [load_file(p) for p in MODEL.rglob("*.safetensors")]
    assert {t.dtype for w in weights for t in w.values()} == {torch.float16}


def test_learning_lowers_the_validation_loss(tmp_path):
    job = build(
        Job,
        {
            "run_name": "l",
            "run_dir": str(tmp_path / "l"),
            "model": {"path": str(MODEL)},
            "data": {"path": str(REPOSITORY / "toyworld" / "concept"), "resolution": 64},
            "training": {
                "max_train_steps": 40,
                "train_batch_size": 8,
                "learning_rate": 5e-3,
                "save_as_full_pipeline": False,
            },
            "validation": {"steps": 40, "triples": 64, "reference_caption": "yellow toy"},
        },
    )
    facts = train(job)
    halfway = facts["initializer_loss"] - 0.5 * (facts["initializer_loss"] - facts["reference_loss"])
    assert facts["reference_loss"] < facts["initializer_loss"]
    assert facts["validation_loss"] < halfway


def test_a_model_without_its_safety_checker_can_be_saved_and_loaded(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["requires_safety_checker"] = True
    (model / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    save_full_pipeline(model, tmp_path / "saved", "<x>", torch.zeros(1, 128))
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "saved").safety_checker is None
