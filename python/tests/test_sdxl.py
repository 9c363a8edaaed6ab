"""Stable Diffusion XL on an untrained pipeline: conditioning as diffusers has it, all methods, files, exactness."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, safe_open

from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures, view_of
from sdtune.data.posterior_files import PosteriorFiles
from sdtune.inference.draw import draw_batch, load_generator
from sdtune.inference.export import export
from sdtune.inference.generator import ImageGenerator
from sdtune.inference.plan import make_plan
from sdtune.inference.pool import WorkerPool, worker_commands
from sdtune.inference.prompts import added_tokens
from sdtune.launch.run_folder import Run
from sdtune.methods.formats import load_embeddings
from sdtune.methods.lora_files import load_diffusers
from sdtune.methods.textual_inversion import TextualInversion
from sdtune.models.family import Batch
from sdtune.models.registry import family_of
from sdtune.settings import GenerationJob, Job, build
from sdtune.training.checks import check_job
from sdtune.training.trainer import train
from tests.conftest import CLASS_PROMPT, REPOSITORY, run_ranks, write_job

SMALL = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32}
PROMPTS = [CLASS_PROMPT, "a yellow robot with glasses"]


@pytest.fixture
def xl(mapping, untrained_xl, tmp_path):
    """Makes jobs: ``xl(name, method, section={...})``."""

    def make(name="run", method="textual_inversion", **sections):
        new = {**mapping, "method": method, "run_dir": str(tmp_path / name), "model": {"path": str(untrained_xl)}}
        training = {"max_train_steps": 2, "save_as_full_pipeline": True, **sections.pop("training", {})}
        new["training"] = {**mapping["training"], **training}
        if method == "textual_inversion":
            new["data"] = {**mapping["data"], "placeholder_token": "<t>", "initializer_token": "toy", "num_vectors": 2}
        if method == "pivotal":
            new["data"] = {**mapping["data"], "placeholder_token": "<t>", "initializer_token": "toy"}
            new["lora"] = {"rank": 4, "learning_rate": 1e-2}
        if method == "lora":
            new["training"].pop("learning_rate")
            new["data"] = {**mapping["data"], "instance_prompt": CLASS_PROMPT}
            new["lora"] = {"rank": 4, "alpha": 6.0, "learning_rate": 1e-2, "text_encoder": True}
        for section, values in sections.items():
            new[section] = {**new.get(section, {}), **values}
        return build(Job, new)

    return make


def learned_by(job):
    """All learned numbers of a run with a token and adapters, by what they belong to."""
    lora, (_, rows) = load_diffusers(Run(job.run_dir).lora), load_embeddings(Run(job.run_dir).learned)
    return {
        network: torch.cat([x.flatten() for pair in factors.values() for x in pair])
        for network, factors in lora.networks.items()
    } | rows


def latents(pipeline, prompt):
    return pipeline(prompt, generator=torch.Generator().manual_seed(1), output_type="latent", **SMALL).images


# --- the family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_captions_and_sizes_condition_the_unet_as_in_diffusers(xl, untrained_xl, tmp_path, prediction):
    model = shutil.copytree(untrained_xl, tmp_path / "model")
    schedule = model / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"prediction_type": prediction}))
    job = xl(model={"path": str(model)})
    networks = family_of(job.model.path).load(job)
    pipeline = StableDiffusionXLPipeline.from_pretrained(job.model.path)
    hidden, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    made = networks.encode([*PROMPTS, "", ""])
    torch.testing.assert_close(made["prompt_embeds"], torch.cat([hidden, negative]))
    torch.testing.assert_close(made["pooled_prompt_embeds"], torch.cat([pooled, negative_pooled]))

    view = view_of((60, 40), (32, 32), center_crop=True)
    assert (view.original, view.crop, view.target) == ((40, 60), (0, 8), (32, 32))
    shape, time = (2, 4, 4, 4), torch.tensor([10, 500])
    batch = Batch(
        latents=torch.randn(shape), noise=torch.randn(shape), timesteps=time, captions=PROMPTS, views=[view] * 2
    )
    noisy = networks.scheduler.add_noise(batch.latents, batch.noise, time)
    ids = pipeline._get_add_time_ids(
        view.original, view.crop, view.target, torch.float32, text_encoder_projection_dim=pooled.shape[-1]
    )
    added = {"text_embeds": pooled, "time_ids": ids.repeat(2, 1)}
    predicted = pipeline.unet(noisy, time, encoder_hidden_states=hidden, added_cond_kwargs=added).sample
    target = batch.noise
    if prediction == "v_prediction":
        signal = networks.scheduler.alphas_cumprod[time].view(2, 1, 1, 1)
        target = signal.sqrt() * batch.noise - (1 - signal).sqrt() * batch.latents
    losses = (predicted - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(networks.denoising_losses(batch), losses, rtol=1e-4, atol=1e-5)


def test_each_picture_says_how_it_was_cropped(xl, pictures, tmp_path):
    job = xl()
    networks = family_of(job.model.path).load(job)
    files = PosteriorFiles(tmp_path / "latents", networks.image_encoder_id)
    cache = LatentCache(networks.geometry, networks.load_image_encoder, files, list_pictures(pictures), 32, False)
    view = cache.view_of(0)
    assert (view.original, view.crop, view.target) == ((96, 96), (0, 0), (32, 32))


# --- methods ---------------------------------------------------------------------------------------------------------


def test_two_ranks_learn_what_one_learns_and_resuming_is_bit_exact(xl, tmp_path):
    """A token and adapters of all networks together, which is what all methods learn."""
    options = {"max_train_steps": 2, "adam_epsilon": 1e-3, "checkpointing_steps": 1, "save_as_full_pipeline": False}
    lora = {"text_encoder": True, "token_share": 1.0}
    one = xl("one", "pivotal", training={**options, "train_batch_size": 4}, lora=lora)
    two = xl("two", "pivotal", training={**options, "world_size": 2}, lora=lora)
    train(one)
    run_ranks(write_job(tmp_path / "job.yaml", two), 2)
    assert learned_by(one).keys() == {"unet", "text_encoder", "text_encoder_2", "clip_l", "clip_g"}
    torch.testing.assert_close(learned_by(two), learned_by(one), rtol=1e-3, atol=1e-5)

    shutil.copytree(one.run_dir, tmp_path / "cut")
    Run(tmp_path / "cut").finished.unlink()
    shutil.rmtree(Run(tmp_path / "cut").checkpoints / "step-000002")
    again = {"train_batch_size": 4, "resume_from_checkpoint": "latest"}
    resumed = xl("cut", "pivotal", training={**options, **again}, lora=lora)
    train(resumed)
    torch.testing.assert_close(learned_by(resumed), learned_by(one), rtol=0, atol=0)


def test_a_new_token_is_not_taken_for_the_end_of_the_text(xl, untrained_xl, tmp_path):
    """The base model's configuration says 2, by which transformers takes the token with the largest id."""
    old = shutil.copytree(untrained_xl, tmp_path / "old")
    config = old / "text_encoder_2" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 2}))
    pooled = []
    for model in (old, untrained_xl):
        job = xl(model={"path": str(model)})
        networks = family_of(model).load(job)
        TextualInversion(job, networks)
        pooled.append(networks.encode(["a <t> in the snow"])["pooled_prompt_embeds"])
    assert torch.equal(*pooled)


def test_textual_inversion_learns_in_both_encoders(xl, untrained_xl):
    """And what it writes draws the same in diffusers, from ``pipeline/`` and from the file."""
    job = xl(validation={"steps": 2, "prompt": "a <t>", "num_images": 1})
    assert check_job(job) is not None
    train(job)
    run = Run(job.run_dir)
    learned, tools = load_file(run.learned), load_file(run.folder / "t.safetensors")
    assert {name: tuple(t.shape) for name, t in learned.items()} == {"clip_l": (2, 48), "clip_g": (2, 80)}
    assert all(torch.equal(learned[name], tools[name]) for name in learned)
    assert sorted(p.name for p in run.validation.glob("*.png")) == ["step-000000.png", "step-000002.png"]

    plain = StableDiffusionXLPipeline.from_pretrained(untrained_xl)
    base = latents(plain, "a toy toy")
    for name, encoder, tokenizer in (
        ("clip_l", plain.text_encoder, plain.tokenizer),
        ("clip_g", plain.text_encoder_2, plain.tokenizer_2),
    ):
        plain.load_textual_inversion(learned[name], token="<t>", text_encoder=encoder, tokenizer=tokenizer)
    learned_pipeline = StableDiffusionXLPipeline.from_pretrained(run.pipeline)
    ours = latents(learned_pipeline, "a <t>")
    torch.testing.assert_close(latents(plain, "a <t>"), ours, rtol=1e-3, atol=1e-3)
    assert (ours - base).abs().max() > 1e-3
    # our own generator gets prompts with all tokens of the placeholder, and adds none
    [theirs] = learned_pipeline("a <t>", **SMALL, generator=torch.Generator().manual_seed(1)).images
    generator = ImageGenerator(learned_pipeline, steps=2, guidance_scale=3.0, height=32, width=32)
    assert generator.generate(["a <t> <t>_1"], [1])[0].tobytes() == theirs.tobytes()


def test_other_tools_read_a_lora_of_both_encoders(xl, untrained_xl, tmp_path):
    plain_model = shutil.copytree(untrained_xl, tmp_path / "plain")
    for file in plain_model.glob("tokenizer*/tokenizer.json"):  # as on hubs
        file.unlink()
    job = xl(method="lora", model={"path": str(plain_model)}, lora={"dropout": 0.2})
    train(job)
    run = Run(job.run_dir)
    assert "<|endoftext|>" in added_tokens(run.pipeline)
    with safe_open(run.folder / "t.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
    assert {name.split("_")[1] for name in names} == {"unet", "te1", "te2"}
    ours = latents(StableDiffusionXLPipeline.from_pretrained(run.pipeline), CLASS_PROMPT)
    plain = StableDiffusionXLPipeline.from_pretrained(untrained_xl)
    assert (ours - latents(plain, CLASS_PROMPT)).abs().max() > 0.01
    for name in ("pytorch_lora_weights.safetensors", "t.safetensors"):
        plain.load_lora_weights(run.folder, weight_name=name)
        assert plain.get_list_adapters().keys() == {"unet", "text_encoder", "text_encoder_2"}
        torch.testing.assert_close(latents(plain, CLASS_PROMPT), ours, rtol=1e-3, atol=1e-3)
        plain.unload_lora_weights()


# --- OpenVINO --------------------------------------------------------------------------------------------------------


def test_the_openvino_copy_is_static_and_draws(xl, tmp_path):
    """With int8 weights; with guidance in a part of the steps, which cuts the added conditions in halves; cached."""
    openvino = {"batch_size": 2, "weights": "int8", "similarity_images": 1, "similarity_steps": 2}
    job = xl(openvino=openvino, data={"num_vectors": 1})
    train(job)
    exported = export(job)
    assert exported.similarity is not None
    assert exported.similarity[0] > 20  # dB
    drawn = []
    for how in ({}, {"guidance_stop": 0.5}, {"guidance_stop": 0.5, "cache_interval": 2, "cache_branch": 1}):
        settings = {"run_dir": job.run_dir, "prompts": ["a <t> in the snow", "a <t> at night"], "seeds": [1]}
        generation = build(GenerationJob, {**settings, "num_inference_steps": 2, **how})
        plan = make_plan(generation)
        drawn.append(draw_batch(load_generator(generation, plan, len(plan.cores[0])), generation, plan, 0))
    assert len({png for files in drawn for png in files.values()}) == 6
    # and a worker of the pool, a process of its own, draws the same
    file = write_job(tmp_path / "generation.yaml", generation)
    run = Run(job.run_dir)
    run.drawn.mkdir()
    WorkerPool(generation, plan).run(worker_commands(["--job", str(file)], plan, {}))
    assert {path.name: path.read_bytes() for path in run.drawn.iterdir()} == drawn[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("textual_inversion", {"training": {"learning_rate": 1e-2}, "data": {"initializer_token": "toy"}}),
        ("lora", {"lora": {"rank": 4, "learning_rate": 1e-3}, "data": {"instance_prompt": CLASS_PROMPT}}),
    ],
)
def test_the_embedded_model_learns_a_concept(tmp_path, method, settings):
    toyworld = REPOSITORY / "toyworld"
    job = {
        "run_name": "t",
        "method": method,
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(toyworld / "xl/model")},
        "data": {"path": str(toyworld / "concept"), "resolution": 64, **settings.pop("data")},
        "training": {
            "max_train_steps": 10,
            "train_batch_size": 8,
            "mixed_precision": "no",
            "save_as_full_pipeline": False,
            **settings.pop("training", {}),
        },
        "validation": {"steps": 10, "triples": 16},
        **settings,
    }
    facts = train(build(Job, job))
    assert facts["validation_loss"] < 0.97 * facts["initializer_loss"]
