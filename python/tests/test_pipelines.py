"""From the embedded model to images: what diffusers, OpenVINO and a reader of the files find."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import openvino as openvino_runtime
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from sdtune.errors import BadInput
from sdtune.host import memory
from sdtune.inference import export, openvino
from sdtune.inference.draw import draw_batch, load_generator
from sdtune.inference.evaluations import Evaluations
from sdtune.inference.exported import requested_shape
from sdtune.inference.feature_cache import FeatureCache, Forecast, count_branches, split
from sdtune.inference.generator import SCHEDULERS, ImageGenerator, set_scheduler
from sdtune.inference.images import similarity
from sdtune.inference.plan import make_plan
from sdtune.inference.results import clear_drawn, finish, generation_lock, write_images
from sdtune.launch.run_folder import Run
from sdtune.methods.formats import save_embeddings
from sdtune.methods.textual_inversion import save_full_pipeline
from sdtune.settings import GenerationJob, Job, OpenVINOArgs, build
from sdtune.settings.quality import MOST_SCHEDULED, MOST_STEPS
from sdtune.training.checks import check_job
from sdtune.training.trainer import train
from standalone import run_state
from tests.conftest import PATIENCE, PRECISION, REPOSITORY, learned_rows, write_job

# torch's tracer remarks on every shape that the export makes static
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")]
MODEL = REPOSITORY / "toyworld" / "model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short real run on the embedded model with a word of two vectors, exported for five prompts at once."""
    job = build(
        Job,
        {
            "run_name": "t",
            "run_dir": str(tmp_path_factory.mktemp("runs") / "t"),
            "model": {"path": str(MODEL)},
            "data": {
                "path": str(REPOSITORY / "toyworld" / "concept"),
                "placeholder_token": "<dicoo>",
                "resolution": 64,
                "num_vectors": 2,
            },
            "training": {
                "max_train_steps": 8,
                "train_batch_size": 4,
                "learning_rate": 5e-3,
                "mixed_precision": PRECISION,
            },
            "validation": {"steps": 8, "triples": 16, "prompt": "a photo of a <dicoo>", "num_images": 1},
            "openvino": {"batch_size": 5},
        },
    )
    train(job)
    done = export.export(job)
    assert done.shape == requested_shape(job)
    assert done.similarity is None
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
    rows = learned_rows(trained)
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[ids].detach(), rows)
    assert pipeline.maybe_convert_prompt("a <dicoo>", pipeline.tokenizer) == "a <dicoo> <dicoo>_1"


def test_diffusers_loads_the_saved_pipeline_and_nothing_else_changed(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(Run(trained.run_dir).pipeline)
    base = StableDiffusionPipeline.from_pretrained(MODEL)
    assert pipeline.text_encoder.dtype == torch.float32
    old = base.text_encoder.get_input_embeddings().weight
    new = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old)
    assert torch.equal(new[len(old) :].detach(), learned_rows(trained))
    for part in ("unet", "vae"):
        name = "diffusion_pytorch_model.safetensors"
        assert (Run(trained.run_dir).pipeline / part / name).read_bytes() == (MODEL / part / name).read_bytes()
    image = pipeline("a photo of a <dicoo> <dicoo>_1", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


def test_no_file_of_a_run_can_hold_code(trained):
    files = [p for s in ("bin", "pt", "ckpt", "pkl") for p in Run(trained.run_dir).folder.rglob(f"*.{s}")]
    # OpenVINO's weights are named .bin too, but are plain arrays that its .xml describes
    assert [p for p in files if not (p.name.startswith("openvino_") and p.with_suffix(".xml").exists())] == []


def ports(pipeline):
    return {
        f"{name}.{port.any_name}": list(port.get_partial_shape().to_shape())
        for name, model in pipeline.ov_models.items()
        for port in model.inputs
    }


def test_the_openvino_copy_is_static_after_reload(trained):
    pipeline = openvino.load(Run(trained.run_dir).openvino)
    assert ports(pipeline) == {
        "unet.sample": [10, 4, 8, 8],  # five prompts, guided and not
        "unet.timestep": [1],
        "unet.encoder_hidden_states": [10, 32, 128],
        "text_encoder.input_ids": [5, 32],
        "vae_decoder.latent_sample": [5, 4, 8, 8],
        "vae_encoder.sample": [5, 3, 64, 64],
    }
    assert openvino.static_shape(pipeline) == requested_shape(trained)


def test_five_prompts_make_five_pictures_as_optimum_loads_it(trained):
    """No word about shapes in the call, and none is lost."""
    from optimum.intel import OVStableDiffusionPipeline

    pipeline = OVStableDiffusionPipeline.from_pretrained(Run(trained.run_dir).openvino)
    assert ports(pipeline) == ports(openvino.load(Run(trained.run_dir).openvino))
    prompts = [f"a <dicoo> <dicoo>_1 in the {place}" for place in ("snow", "sea", "wood", "sun", "dark")]
    pictures = pipeline(prompts, num_inference_steps=2).images
    assert len({picture.tobytes() for picture in pictures}) == 5


def test_openvino_genai_draws_too(trained):
    """From the same folder, through the tokenizer that was exported with it."""
    import openvino_genai

    pipeline = openvino_genai.Text2ImagePipeline(str(Run(trained.run_dir).openvino))
    pipeline.reshape(1, 64, 64, 4.0)
    pipeline.compile("CPU", INFERENCE_PRECISION_HINT="f32")
    drawn = pipeline.generate("a photo of a <dicoo> <dicoo>_1", num_inference_steps=3, height=64, width=64)
    picture = np.array(drawn.data)
    assert picture.shape == (1, 64, 64, 3)
    assert picture.std() > 5


def test_a_copy_of_another_run_is_refused(trained, tmp_path):
    shutil.copytree(trained.run_dir, tmp_path / "other")
    save_embeddings(tmp_path / "other" / "learned_embeds.safetensors", "<dicoo>", {"<dicoo>": torch.ones(2, 128)})
    with pytest.raises(BadInput, match="was exported from another run"):
        generate(generation_job(trained, run_dir=str(tmp_path / "other")))


def test_a_dynamic_copy_is_refused_where_a_static_one_was_promised(trained, tmp_path):
    from optimum.intel import OVStableDiffusionPipeline

    dynamic = OVStableDiffusionPipeline.from_pretrained(
        Run(trained.run_dir).openvino, compile=False, dynamic_shapes=True
    )
    dynamic.save_pretrained(tmp_path / "dynamic")
    with pytest.raises(BadInput, match="is dynamic; export the run again"):
        openvino.load(tmp_path / "dynamic")


def test_the_similarity_of_an_int8_copy_with_dynamic_shapes_is_measured(trained, tmp_path):
    shutil.copytree(trained.run_dir, tmp_path / "int8", ignore=shutil.ignore_patterns("openvino"))
    asked = {"weights": "hybrid", "calibration_samples": 4, "dynamic_shapes": True, "similarity_steps": 4}
    job = replace(trained, run_dir=str(tmp_path / "int8"), openvino=build(OpenVINOArgs, asked))
    done = export.export(job)
    assert done.shape is None
    psnr, difference = done.similarity
    assert 15 < psnr < 80
    assert difference > 0
    sizes = [(Run(j.run_dir).openvino / "unet" / "openvino_model.bin").stat().st_size for j in (job, trained)]
    assert sizes[0] < 0.7 * sizes[1]
    files = generate(generation_job(job, width=96))
    assert Image.open(files[0]).size == (96, 64)


def generation_job(trained, **values):
    prompts = ["a photo of a <dicoo>"]
    defaults = {"run_dir": trained.run_dir, "prompts": prompts, "seeds": [1], "num_inference_steps": 3}
    return build(GenerationJob, {**defaults, **values})


def generate(job):
    """All batches of a job in this process, as its first worker does it; returns the files."""
    plan, run = make_plan(job), Run(job.run_dir)
    clear_drawn(run)
    generator = load_generator(job, plan, len(plan.cores[0]))  # the decoder's last bits depend on the number of threads
    for number in range(len(plan.batches)):
        write_images(draw_batch(generator, job, plan, number), run.drawn)
    return finish(job, plan)


def test_metadata_say_how_an_image_was_generated(trained):
    prompts = ["a photo of a <dicoo>", "a photo of a toy", "a <dicoo> in the snow"]
    files = generate(generation_job(trained, prompts=prompts, seeds=[1, 2]))
    assert [f.name for f in files][:2] == ["0000-seed1.png", "0001-seed2.png"]
    assert len(files) == 7
    assert files[-1].name == "contact_sheet.png"
    facts = Image.open(files[5]).text
    assert facts["prompt"] == "a <dicoo> in the snow"
    assert (json.loads(facts["seed"]), json.loads(facts["num_inference_steps"])) == (2, 3)
    assert [p.name for p in Run(trained.run_dir).folder.glob(".*") if p.name != ".drawing.lock"] == []


def pixels(job, index=0):
    return np.asarray(Image.open(generate(job)[index]), float)


def test_an_image_does_not_depend_on_the_others_of_its_batch(trained):
    assert (
        np.abs(pixels(generation_job(trained, seeds=[7])) - pixels(generation_job(trained, seeds=[1, 7]), 1)).max() <= 1
    )


def test_an_image_is_the_same_bits_in_any_process(trained):
    """All in this process, and by the program with two processes: 8 images are two batches of five."""
    prompts = ["a photo of a <dicoo>", "a photo of a toy"]
    job = generation_job(trained, prompts=prompts, seeds=[1, 2, 3, 4], processes=2, cache_interval=2)
    here = {f.name: f.read_bytes() for f in generate(job)}
    file = write_job(Run(job.run_dir).folder / "generation.yaml", job)
    program = [sys.executable, str(REPOSITORY / "python" / "generate_images.py"), "--job", str(file)]
    checked = subprocess.run([*program, "--check"], capture_output=True, text=True, check=True)
    found = json.loads(checked.stdout)
    assert (found["pictures"], found["batches"], found["processes"]) == (8, 2, 2)
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert "8 of 8 pictures" in said
    assert "warning: the prompt 'a photo of a toy' does not hold the learned word <dicoo>" in said
    assert {f.name: f.read_bytes() for f in Run(job.run_dir).images.iterdir()} == here
    assert [p.name for p in Run(job.run_dir).folder.glob(".*")] == [".drawing.lock"]


def test_generation_runs_in_the_background(trained):
    """As the playbook starts and follows it; meanwhile a second one is refused."""
    job = generation_job(trained, num_inference_steps=20)
    run = Run(job.run_dir)
    file = write_job(run.folder / "generation.yaml", job)
    command = [sys.executable, str(REPOSITORY / "python/generate_images.py"), "--job", str(file), "--detach"]
    subprocess.run(command, check=True)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "are being drawn on this host already" in again.stderr
    seen = run_state.drawing(run.folder, wait=PATIENCE)
    assert (seen["going"], seen["state"]["pictures"], seen["state"]["lost"]) == (False, 1, {})
    assert seen["state"]["ended"] > seen["state"]["began"]
    assert seen["log"][-1].startswith("1 pictures and ")


def test_both_sources_generate_the_same(trained):
    both = [pixels(generation_job(trained, source=s, seeds=[3], guidance_scale=2.0)) for s in ("openvino", "pipeline")]
    assert np.abs(both[0] - both[1]).mean() < 1


@pytest.mark.parametrize("source", ["openvino", "pipeline"])
def test_without_guidance_half_the_samples_are_computed(trained, source):
    """An interval without any step gives the images of guidance 1; the metadata tell them apart."""
    none = generation_job(trained, source=source, num_inference_steps=4, guidance_scale=1.0)
    never = replace(none, guidance_scale=5.0, guidance_start=0.99)
    assert np.abs(pixels(none) - pixels(never)).max() <= 1
    assert json.loads(Image.open(generate(never)[0]).text["guidance_interval"]) == [0.99, 1.0]
    [told] = make_plan(never).warnings
    assert told.startswith("guidance_start and guidance_stop: none of 4 steps begins between 0.99 and 1.0")
    assert make_plan(none).warnings == make_plan(replace(never, guidance_start=0.75)).warnings == []


def test_an_output_that_is_not_finite_is_no_black_picture(trained):
    generator, _ = cached(trained, 1, steps=2)
    decoder = generator._pipeline.vae_decoder
    decode = decoder.forward
    decoder.forward = lambda *args, **options: [decode(*args, **options)[0] * float("nan")]
    with pytest.raises(BadInput, match="not finite"):
        generator.generate(["a toy"] * 5, [1] * 5)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_most_steps_of_a_scheduler_are_finite(scheduler):
    pipeline = SimpleNamespace(scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1))
    set_scheduler(pipeline, scheduler)
    steps, sample = MOST_STEPS.get(scheduler, MOST_SCHEDULED), torch.ones(1, 4, 2, 2)
    pipeline.scheduler.set_timesteps(steps)
    for timestep in pipeline.scheduler.timesteps:
        sample = pipeline.scheduler.step(torch.ones_like(sample), timestep, sample).prev_sample
    assert torch.isfinite(sample).all()


def test_an_interval_skips_samples_and_does_not_change_guided_steps(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(Run(trained.run_dir).pipeline, torch_dtype=torch.float32)
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent"}
    full = pipeline("a toy", generator=torch.Generator().manual_seed(1), **options).images
    interval = Evaluations(pipeline, interval=(0.0, 1.0))
    same = pipeline("a toy", generator=torch.Generator().manual_seed(1), **options).images
    assert torch.allclose(same, full, atol=1e-4)
    assert interval.samples == 2 * 5  # PNDM evaluates once more than asked
    del pipeline.unet.forward
    part = Evaluations(pipeline, interval=(0.0, 0.5))
    part.begin()
    pipeline("a toy", generator=torch.Generator().manual_seed(1), **options)
    assert part.samples == 2 * 3 + 2


def test_a_shallow_unet_with_a_fresh_feature_is_the_whole_one(trained):
    core, config = openvino_runtime.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    unet = core.read_model(Run(trained.run_dir).openvino / "unet" / "openvino_model.xml")
    rng = np.random.default_rng(0)
    inputs = {"timestep": np.array([500])}
    for name in ("sample", "encoder_hidden_states"):
        inputs[name] = rng.standard_normal(unet.input(name).shape, dtype=np.float32)
    [noise] = core.compile_model(unet, "CPU", config)(inputs).values()
    assert (
        count_branches(unet) == make_plan(generation_job(trained)).exported.cache_branches == 4
    )  # 2 blocks of 2 layers
    sizes = []
    for branch in range(4):
        whole, shallow = split(unet, branch)
        found, feature = core.compile_model(whole, "CPU", config)(inputs).values()
        [again] = core.compile_model(shallow, "CPU", config)({**inputs, "deep_feature": feature}).values()
        assert np.array_equal(found, noise)
        np.testing.assert_allclose(again, noise, rtol=1e-4, atol=1e-4)
        sizes.append(len(shallow.get_ops()))
    assert sizes == sorted(sizes)
    assert sizes[-1] < len(unet.get_ops())
    assert len(unet.outputs) == 1


def cached(trained, every, **options):
    """A generator that caches features, one of ``every`` evaluations whole; and its cache."""
    threads = len(os.sched_getaffinity(0))
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    pipeline = openvino.load(Run(trained.run_dir).openvino, ov_config=config)
    if options.get("interval"):
        openvino.set_unet_batch(pipeline, 5)
    cache = FeatureCache(pipeline.unet, every, 0)
    return ImageGenerator(pipeline, guidance_scale=4.0, cache=cache, height=64, width=64, **options), cache


def test_cached_features_change_pictures_little(trained):
    """Five prompts in a batch; with an interval of 1 not at all, though the cache computes them."""
    asked = {"prompts": [f"a <dicoo> in the {place}" for place in ("snow", "sea", "wood", "sun", "dark")]}
    asked |= {"num_inference_steps": 12, "guidance_scale": 4.0, "scheduler": "dpmsolver++"}
    exact = [Image.open(file) for file in generate(generation_job(trained, **asked))[:5]]
    prompts = [prompt.replace("<dicoo>", "<dicoo> <dicoo>_1") for prompt in asked["prompts"]]
    drawn = {}
    for interval in (1, 2):
        generator, cache = cached(trained, interval, steps=12, scheduler="dpmsolver++")
        drawn[interval] = generator.generate(prompts, [1] * 5)
        assert cache.evaluations == {"whole": 12 // interval, "shallow": 12 - 12 // interval}
    assert [np.array_equal(a, b) for a, b in zip(drawn[1], exact, strict=True)] == [True] * 5
    assert np.median([similarity([a], [b])[0] for a, b in zip(drawn[2], exact, strict=True)]) > 22  # dB


def test_each_half_of_a_guided_batch_has_its_own_features(trained):
    """The negative half begins in the middle of a period of the cache, where it has no feature yet."""
    generator, cache = cached(trained, 4, steps=8, scheduler="ddim", interval=(0.25, 0.9))
    first = generator.generate(["a toy"] * 5, [1] * 5)
    # positive: whole at 0 and 4; negative: guided from 2 to 7, whole at 2 and 4
    assert cache.evaluations == {"whole": 4, "shallow": 10}
    again = generator.generate(["a toy"] * 5, [1] * 5)
    assert cache.evaluations == {"whole": 8, "shallow": 20}
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_features_go_on_along_a_line():
    features = Forecast()
    assert not features.is_of(0)
    features.keep(2, np.array([1.0, 5.0], np.float32))
    assert features.is_of(2)
    assert not features.is_of(3)
    assert features.at(3).tolist() == [1, 5]
    features.keep(4, np.array([2.0, 5.0], np.float32))
    assert features.at(5).tolist() == [2.5, 5]
    features.keep(6, np.array([2.0, 9.0], np.float32))
    assert features.at(7).tolist() == [2, 11]
    assert features.at(7).dtype == np.float32


def test_a_copy_of_an_earlier_version_has_no_features_to_cache(trained, tmp_path):
    shutil.copytree(trained.run_dir, tmp_path / "old")
    facts = Run(tmp_path / "old").openvino / "sdtune.json"
    kept = {name: value for name, value in json.loads(facts.read_text()).items() if name != "cache_branches"}
    facts.write_text(json.dumps(kept))
    old = generation_job(trained, run_dir=str(tmp_path / "old"))
    assert len(make_plan(old).batches) == 1
    with pytest.raises(BadInput, match="an earlier version exported it; export the run again"):
        make_plan(replace(old, cache_interval=2))


@pytest.mark.parametrize(("name", "cls"), [("dpmsolver++", "DPMSolverMultistepScheduler"), ("lcm", "LCMScheduler")])
def test_schedulers_by_name(trained, name, cls):
    job = generation_job(trained, scheduler=name)
    assert Image.open(generate(job)[0]).text["scheduler"] == cls
    assert ("distilled" in " ".join(make_plan(job).warnings)) == (name == "lcm")


def test_a_tiny_autoencoder_decodes_previews(trained, tmp_path):
    """A fake: its weights are random."""
    from diffusers import AutoencoderTiny

    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**widths).save_pretrained(tmp_path / "tiny")
    files = generate(generation_job(trained, tiny_autoencoder=str(tmp_path / "tiny")))
    assert Image.open(files[0]).text["decoder"] == "tiny"
    assert Image.open(files[0]).size == (64, 64)


def test_generation_without_a_run_is_refused(tmp_path, trained):
    with pytest.raises(BadInput, match="holds no OpenVINO pipeline; export the run first"):
        generate(GenerationJob(run_dir=str(tmp_path), prompts=["x"]))
    with pytest.raises(BadInput, match=r"learned_embeds\.safetensors does not exist; train the run first"):
        generate(GenerationJob(run_dir=str(tmp_path), prompts=["x"], source="pipeline"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": ["a <cat>"]}, r"does not know <cat> \(in 'a <cat>'\); it has learned <dicoo>"),
        ({"height": 128}, "is static, with a height of 64, not 128"),
        ({"tiny_autoencoder": "/nowhere"}, "tiny_autoencoder: /nowhere holds no AutoencoderTiny"),
        ({"cache_interval": 2, "cache_branch": 4}, "cache_branch: 4 is none of the 4 branches of this UNet; take a"),
    ],
)
def test_what_the_run_cannot_generate_is_refused(trained, values, message):
    with pytest.raises(BadInput, match=message):
        make_plan(generation_job(trained, **values))


def test_what_does_not_fit_into_memory_is_refused_before_it_starts(trained, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 500_000_000)  # a fake
    with pytest.raises(BadInput, match=r"need about \d+ MB of memory, and 500 MB are free"):
        make_plan(generation_job(trained))
    monkeypatch.setattr(export, "available_bytes", lambda: 500_000_000)
    with pytest.raises(BadInput, match=r"openvino\.batch_size: 5 x 1 pictures of 64 x 64 pixels at once need about"):
        export.check(trained)


def test_a_shape_that_the_unet_cannot_halve_is_refused(trained):
    with pytest.raises(BadInput, match=r"openvino\.height: 72 is not a multiple of 16, .*; take 64 or 80"):
        export.check(replace(trained, openvino=OpenVINOArgs(height=72)))


def test_a_run_has_one_generation_lock(trained):
    run = Run(trained.run_dir)
    with (
        generation_lock(run),
        pytest.raises(BadInput, match="are being drawn on this host already"),
        generation_lock(run),
    ):
        pass


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
                "mixed_precision": PRECISION,
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
    save_full_pipeline(model, tmp_path / "saved", "<x>", {"text_encoder": torch.zeros(1, 128)})
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "saved").safety_checker is None
