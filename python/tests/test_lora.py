"""Whole LoRA runs on the untrained pipeline: what they learn, exactness, files, captions, refusals."""

import json
import os
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from sdtune.data.caption_files import find_captions
from sdtune.data.pictures import picture_problems
from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.methods.baking import bake
from sdtune.methods.lora_files import LoraFile, check_base_model, load_diffusers, save_diffusers
from sdtune.methods.user_captions import literal_warnings
from sdtune.settings import Job, build
from sdtune.training.checks import check_job
from sdtune.training.metrics import read_metrics
from sdtune.training.trainer import train
from tests.conftest import CLASS_PROMPT, learned_adapters, run_ranks, write_job

ALL = {"text_encoder": True, "targets": "attention+feed_forward", "dropout": 0.3}


@pytest.fixture
def mixed(pictures, tmp_path):
    """A folder of pictures of three shapes."""
    folder = tmp_path / "mixed"
    shutil.copytree(pictures, folder)
    for name, box in {"0.png": (0, 0, 96, 40), "1.png": (0, 0, 40, 96)}.items():
        with Image.open(folder / name) as picture:
            picture.crop(box).save(folder / name)
    return folder


@pytest.mark.parametrize("everything", [False, True], ids=["default", "everything"])
def test_two_ranks_learn_what_one_learns(lora_job, mixed, tmp_path, everything):
    """And exchange the learned numbers, the loss and one flag, nothing else."""
    # with AdamW's usual epsilon, rounding decides the sign of a step where the gradient is almost 0
    options = {"max_train_steps": 3, "adam_epsilon": 1e-3}
    also = {"lora": ALL, "data": {"path": str(mixed), "resolution": 128, "aspect_ratio_buckets": True}}
    also = also if everything else {}
    one = lora_job("one", training={**options, "train_batch_size": 4}, **also)
    two = lora_job("two", training={**options, "world_size": 2}, **also)
    train(one)
    run_ranks(write_job(tmp_path / "job.yaml", two), 2)
    learned = learned_adapters(two)
    torch.testing.assert_close(learned, learned_adapters(one), rtol=1e-3, atol=1e-5)
    steps = [m for m in read_metrics(Run(two.run_dir).metrics) if m["kind"] == "step"]
    assert {m["sync_bytes"] for m in steps} == {4 * (len(learned) + 2)}


def test_resuming_is_bit_exact(lora_job, tmp_path):
    options = {"max_train_steps": 4, "checkpointing_steps": 2}
    also = {"validation": {"steps": 2, "reference_caption": "a yellow toy"}, "data": {"caption_dropout": 0.5}}
    whole = lora_job("whole", training=options, **also)
    facts = train(whole)
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    Run(tmp_path / "cut").finished.unlink()
    shutil.rmtree(Run(tmp_path / "cut").checkpoints / "step-000004")
    resumed = lora_job("cut", training={**options, "resume_from_checkpoint": "latest"}, **also)
    again = train(resumed)
    assert torch.equal(learned_adapters(resumed), learned_adapters(whole))
    assert again["learned"]["pytorch_lora_weights.safetensors"] == facts["learned"]["pytorch_lora_weights.safetensors"]
    for name in ("validation_loss", "initializer_loss", "reference_loss"):
        assert again[name] == facts[name], name
    assert facts["validation_loss"] < facts["initializer_loss"]


def latents(pipeline):
    options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 3.0, "height": 32, "width": 32}
    return pipeline(CLASS_PROMPT, generator=torch.Generator().manual_seed(1), **options).images


def test_other_tools_read_what_a_run_writes(lora_job, untrained_model):
    """Both files give diffusers the same adapters as ``pipeline/`` has baked in, also with an alpha of its own."""
    lora = {"text_encoder": True, "alpha": 6.0, "dropout": 0.2}
    job = lora_job(training={"save_as_full_pipeline": True, "max_train_steps": 3}, lora=lora)
    train(job)
    run = Run(job.run_dir)
    files = sorted(path.name for path in run.folder.glob("*.safetensors"))
    assert files == ["pytorch_lora_weights.safetensors", "t.safetensors"]
    ours = latents(StableDiffusionPipeline.from_pretrained(run.pipeline))
    plain = StableDiffusionPipeline.from_pretrained(untrained_model)
    base = latents(plain)
    assert (ours - base).abs().max() > 0.01
    for name in files:
        plain.load_lora_weights(run.folder, weight_name=name)
        assert plain.get_list_adapters().keys() == {"unet", "text_encoder"}
        torch.testing.assert_close(latents(plain), ours, rtol=1e-3, atol=1e-3)
        plain.unload_lora_weights()
    with safe_open(run.folder / "t.safetensors", framework="pt") as file:
        alphas = {file.get_tensor(key).item() for key in file.keys() if key.endswith(".alpha")}  # noqa: SIM118
        about = file.metadata()
        assert alphas == {float(about["ss_network_alpha"])}
        assert (about["ss_base_model_version"], about["ss_v2"]) == ("sd_v1", "False")
    half = run.folder / "half"
    bake(load_diffusers(run.lora), run.pipeline, half, -1.0)  # weight 0
    torch.testing.assert_close(latents(StableDiffusionPipeline.from_pretrained(half)), base, rtol=1e-3, atol=1e-3)


def test_the_text_encoder_leaves_memory_and_pictures_are_still_drawn(lora_job):
    job = lora_job(validation={"steps": 2, "prompt": "a toy in the snow", "num_images": 1})
    train(job)
    names = sorted(path.name for path in Run(job.run_dir).validation.glob("*.png"))
    assert names == ["step-000000.png", "step-000002.png"]


def test_adapters_of_another_base_model_are_refused(untrained_model, tmp_path):
    factors = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (torch.zeros(4, 1280), torch.zeros(1280, 4))}
    lora = LoraFile(networks={"unet": factors}, prefixes={}, alpha=4.0, configs={}, metadata={})
    with pytest.raises(BadInput, match=r"of another base model: it adapts mid_block\S+, which .*unet does not have"):
        bake(lora, untrained_model, tmp_path / "pipeline", 1.0)
    assert not (tmp_path / "pipeline").exists()
    save_diffusers(tmp_path / "lora.safetensors", lora)
    with pytest.raises(BadInput, match=r"of another base model: it adapts mid_block\S+, which .*unet does not have"):
        check_base_model(tmp_path / "lora.safetensors", untrained_model)
    (tmp_path / "lora.safetensors").write_bytes(b"cut off")
    with pytest.raises(BadInput, match=r"lora.safetensors cannot be read .*is cut off"):
        load_diffusers(tmp_path / "lora.safetensors")


# --- captions --------------------------------------------------------------------------------------------------------


def too_long(text):
    return "too long" if len(text.split()) > 5 else None


@pytest.fixture
def folder(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")
    return tmp_path / "pictures"


def captions_of(folder):
    """Those of a folder without problems."""
    captions, problems = find_captions(folder, sorted(folder.glob("*.png")), too_long)
    assert problems == []
    return captions


def test_captions_are_read_from_text_files_or_metadata(folder):
    assert captions_of(folder) == []
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"\ufeffa toy\n{i}\n", encoding="utf-8")
    assert captions_of(folder) == ["a toy 0", "a toy 1", "a toy 2"]
    for i in range(3):
        (folder / f"{i}.txt").unlink()
    rows = [json.dumps({"file_name": f"{i}.png", "text": f"toy {i}"}) for i in (2, 0, 1)]
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert captions_of(folder) == ["toy 0", "toy 1", "toy 2"]


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        (
            {"0.txt": "a b c d e f", "1.txt": " ", "other.txt": "x"},
            [
                "other.txt has no picture of its name",
                "0.txt: too long",
                "1.txt: the caption of 1.png is empty",
                "2.png has no caption",
            ],
        ),
        (
            {"metadata.jsonl": '{"file_name": "9.png", "text": "x"}\n{"file": 1}\n', "0.txt": "x"},
            [
                "0.txt and metadata.jsonl both hold captions",
                "metadata.jsonl line 1 names 9.png, which is not there",
                'metadata.jsonl line 2 is not like {"file_name"',
                "1.png has no caption",
            ],
        ),
        (
            {"metadata.jsonl": '{"file_name": "0", "text": "", "text": ""}\n{"file_name": "9", "text": "\u2028"}'},
            ["metadata.jsonl line 1 has the key text twice", "metadata.jsonl line 2 names 9, which is not there"],
        ),
    ],
)
def test_all_problems_of_captions_are_found_at_once(folder, files, problems):
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    found = find_captions(folder, sorted(folder.glob("*.png")), too_long)[1]
    for problem in problems:
        assert any(problem in line for line in found)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("0.txt", "a toy".encode("utf-16-le"), "0.txt holds zero bytes"),
        ("0.txt", "a toy".encode("utf-16"), "0.txt is encoded in UTF-16"),
        ("0.txt", "f\u00fcr".encode("latin-1"), "0.txt is not encoded in UTF-8 (byte 0xfc in line 1)"),
        ("0.txt", b"a\1toy", "0.txt: the caption 'a\\x01toy' holds the character '\\x01'"),
        ("0.txt", "\u200b\ufeff ".encode(), "0.txt: the caption of 0.png is empty"),
        ("0.TXT", b"another", "0.txt and {folder}/0.TXT are both captions of 0.png"),
        ("a\nb.txt", b"a toy", "a\\nb.txt' has no picture of its name"),
        ("metadata.jsonl", b'{"file_name": "0.png", "text": "\\ud800"}', "line 1: the caption '\\ud800' holds"),
        ("metadata.jsonl", b'{"file_name": "a\\nb", "text": "x"}', "line 1 names 'a\\nb', which is not there"),
        ("metadata.jsonl", '{"file_name": "0.png"}'.encode("utf-16"), "metadata.jsonl is encoded in UTF-16"),
    ],
)
def test_captions_follow_the_rules_of_all_texts(folder, name, content, said):
    for picture in ("1.png", "2.png"):
        (folder / picture).unlink()
    if name != "metadata.jsonl":
        (folder / "0.txt").write_text("a toy")
    (folder / name).write_bytes(content)
    problems = [p for p in find_captions(folder, [folder / "0.png"])[1] if "0.png has no caption" not in p]
    assert len(problems) == 1
    assert said.format(folder=folder) in problems[0]
    assert problems[0].isprintable()


def test_placeholders_that_stand_for_nothing_are_warned_of():
    found = literal_warnings(["a photo of {}", "a <cat>", "a <cat> on <s>", "a < b > c"], {"<s>"})
    assert "the caption 'a photo of {}' holds {}, which stands for nothing" in found[0]
    assert "the caption 'a <cat>' and 1 more hold <cat>," in found[1]
    assert len(found) == 2


def test_what_is_named_like_a_caption_and_is_no_file_is_said(folder):
    (folder / "0.txt").symlink_to("/nowhere")
    (folder / "1.txt").mkdir()
    os.mkfifo(folder / "2.txt")
    problems = find_captions(folder, sorted(folder.glob("*.png")))[1]
    assert [line.split("/")[-1].split(";")[0] for line in problems] == [
        "0.txt is no file, or a link to nothing", "1.txt is a folder", "2.txt is no file, or a link to nothing"
    ]  # fmt: skip
    (folder / "METADATA.JSONL").write_text("{}")
    assert "METADATA.JSONL is no picture" in picture_problems([folder / "METADATA.JSONL"])[0]


def test_pictures_and_captions_are_checked_in_one_report(lora_job, folder):
    (folder / "0.png").write_bytes(b"no picture")
    (folder / "1.txt").write_text("a toy " * 40, encoding="utf-8")
    (folder / "2.txt").write_text("a toy", encoding="utf-8")
    (folder / "2.jpg").write_bytes((folder / "2.png").read_bytes())
    with pytest.raises(BadInput) as refused:
        check_job(lora_job(data={"path": str(folder), "instance_prompt": None}))
    said = str(refused.value)
    assert said.startswith(f"data.path: {folder}/0.png is no picture by its content")
    assert f"; {folder}/0.png has no caption" in said
    assert f"; {folder}/1.txt: the caption has 82 tokens, and the text encoder takes 32: 'a toy" in said
    assert "2." not in said  # one caption for both pictures of its name


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("lora", {"rank": 0}, "lora.rank: 0 is less than 1"),
        (
            "lora",
            {"rank": 999},
            r"lora.rank: 999 is above \d+, the width of the projection \S+to_k in unet; take at most",
        ),
        ("lora", {"targets": "everything"}, "lora.targets: 'everything' is not one of attention, attention"),
        ("data", {"instance_prompt": None}, "neither is it set nor has a picture in .* a caption; set it, for example"),
        ("data", {"instance_prompt": " "}, "data.instance_prompt: it is empty"),
        ("data", {"instance_prompt": "toy " * 40}, "the caption has 42 tokens, and the text encoder takes 32"),
        ("data", {"placeholder_token": "<x>"}, "'<x>' is of no use to the method lora, it is a setting of textual_inv"),
        ("training", {"learning_rate": 1e-4}, "training.learning_rate: 0.0001 is of no use to the method lora"),
    ],
)
def test_bad_input_is_named(lora_job, section, values, message):
    with pytest.raises(BadInput, match=message):
        check_job(lora_job(**{section: values}))


def test_a_method_refuses_what_only_another_one_uses(mapping, folder):
    with pytest.raises(BadInput, match=r"lora\.rank: 4 is of no use to the method textual_inversion"):
        build(Job, {**mapping, "lora": {"rank": 4}})
    (folder / "0.txt").write_text("a toy", encoding="utf-8")
    with pytest.raises(BadInput, match=r"0\.txt is no picture; move it .*, or choose a method that uses captions"):
        check_job(build(Job, {**mapping, "data": {"path": str(folder), "resolution": 32}}))
