"""What is wrong with a model is seen in its configurations and headers; what is used of it is copied."""

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest

from standalone.model_folder import ModelError, model_problems, read_header, side_problem, size_multiple, used_files
from tests.conftest import PYTHON, REPOSITORY

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(REPOSITORY / "toyworld/model", tmp_path / "model")


def edit(model, file, **values):
    path = model / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_good_model(model):
    assert model_problems(model) == []
    assert size_multiple(model) == 16


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "has no text_encoder_2, no tokenizer_2"),
        ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "usually the refiner"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "Pipeline (a transformer in place"),
        ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "(an inpainting model; take the model"),
        ("model_index.json", {"_class_name": None}, "is a None, which is not supported"),
        ("model_index.json", {"text_encoder": ["transformers", "T5"]}, "names 'T5' as its text_encoder"),
        ("unet/config.json", {"in_channels": 9}, "is an inpainting model: its UNet takes 9 channels"),
        ("unet/config.json", {"in_channels": 8}, "has a UNet of 8 input and 4 output channels, and a VAE of 4"),
        ("unet/config.json", {"cross_attention_dim": 768}, "text encoder of width 128, and a UNet for width 768"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "needs more than a caption (addition_embed_type"),
        ("unet/config.json", {"block_out_channels": [320]}, "conv_in.weight in unet/ has the shape [64, 4, 3, 3], not"),
        ("text_encoder/config.json", {"vocab_size": 7}, "has a tokenizer of 1264 tokens in tokenizer/, and a text"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "has the prediction type 'sample'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "is no whole number from 1 to 100000"),
        ("text_encoder/config.json", {"num_hidden_layers": 4}, "encoder.layers.3.self_attn.q_proj.weight in text_enc"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 in text_encoder/"),
        ("text_encoder/config.json", {"intermediate_size": 64}, "layers.0.mlp.fc1.weight in text_encoder/ has the"),
        ("unet/config.json", {"layers_per_block": 2}, "down_blocks.0.resnets.1.conv2.weight in unet/ does not exist"),
        ("unet/config.json", {"layers_per_block": [1]}, "says layers_per_block: [1] in unet/, for 2 blocks"),
        ("unet/config.json", {"layers_per_block": 10**9}, "says layers_per_block: 1000000000 in unet/"),
        ("unet/config.json", {"transformer_layers_per_block": [[10**9]]}, "says transformer_layers_per_block"),
        ("vae/config.json", {"layers_per_block": 9}, "encoder.down_blocks.0.resnets."),
        ("vae/config.json", {"scaling_factor": "x"}, "says scaling_factor: 'x' in vae/"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "says scaling_factor: nan in vae/"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}, "says model_max_length: 'x' in tokenizer/"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(model, file, values, message):
    edit(model, file, **values)
    [problem] = model_problems(model)
    assert message in problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS in place of the weights"),
        (b"<!doctype html>", "is a page (HTML or XML) in place of the weights"),
        (b"PK\3\4", "pickle format under a wrong name"),
        (b"", "is no safetensors file, or is cut off (0 bytes)"),
        (struct.pack("<Q", 2**60) + b"{}", "is no safetensors file, or is cut off"),
        (struct.pack("<Q", 2) + b"{]", "is a damaged safetensors file"),
        (struct.pack("<Q", 2) + b"{}more", "its tensors take 0 bytes, and 4 are there"),
    ],
)
def test_weights_that_are_none(model, content, message):
    (model / UNET).write_bytes(content)
    [problem] = model_problems(model)
    assert message in problem
    assert UNET in problem
    with pytest.raises(ModelError):
        read_header(model / UNET)


@pytest.mark.parametrize("part", ["text_encoder/model.safetensors", UNET, "vae/diffusion_pytorch_model.safetensors"])
def test_names_that_torch_compile_makes(model, part):
    """The libraries would use random numbers in place of such tensors."""
    path = model / part
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + length])
    header = json.dumps({k if k == "__metadata__" else f"_orig_mod.{k}": v for k, v in tensors.items()}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    [problem] = model_problems(model)
    assert f"in {part.partition('/')[0]}/ does not exist" in problem
    assert "save the network inside of torch.compile's" in problem


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{", "holds a tokenizer/tokenizer.json that cannot be read"),
        ("merges.txt", b"\xff\xfe", "holds a tokenizer/merges.txt that cannot be read"),
        ("merges.txt", b"#version: 0.2\na b\nc\n", "holds a tokenizer/merges.txt whose line 3 is no pair: 'c'"),
        ("tokenizer_config.json", b"[]", "holds a tokenizer/tokenizer_config.json that is no JSON object"),
    ],
)
def test_tokenizers_that_are_damaged(model, file, content, message):
    (model / "tokenizer" / file).write_bytes(content)
    assert message in model_problems(model)[0]


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "unet/config.json", UNET, "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"],
)
def test_what_would_be_read_forever_is_not_read(model, file):
    (model / file).unlink()
    os.mkfifo(model / file)
    (model / "tokenizer/extra.json").symlink_to("/nowhere")
    problems = model_problems(model)
    if file == "tokenizer/tokenizer.json":  # the other form of the tokenizer is there
        assert problems == []
        assert not {file, "tokenizer/extra.json"} & set(used_files(model))
    else:
        assert file in problems[0]


def test_weights_that_are_cut_off(model):
    (model / UNET).write_bytes((model / UNET).read_bytes()[:-1000])
    assert "it is cut off" in model_problems(model)[0]


def test_other_formats_name_the_command_that_converts(model, tmp_path):
    (model / "text_encoder/model.safetensors").rename(model / "text_encoder/pytorch_model.bin")
    assert "only as pytorch_model.bin, not as safetensors; convert it once" in model_problems(model)[0]
    single = tmp_path / "v1-5.safetensors"
    single.touch()
    assert "is a single-file checkpoint" in model_problems(single)[0]
    assert "from_single_file('v1-5.safetensors')" in model_problems(single)[0]


def test_only_what_is_used_is_copied(model):
    """No other format, no other variant, no safety checker."""
    before = used_files(model)
    for name in ("model.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors"):
        (model / name).parent.mkdir(exist_ok=True)
        shutil.copy(model / UNET, model / name)
    assert used_files(model) == before
    assert before[UNET] == UNET


def test_a_variant_is_taken_where_it_is_the_only_one(model):
    """And installed under the plain name; of several, one has to be named."""
    (model / UNET).rename(model / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert model_problems(model) == []
    assert used_files(model)[UNET] == "unet/diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(
        model / "unet/diffusion_pytorch_model.fp16.safetensors", model / "unet/diffusion_pytorch_model.bf16.safetensors"
    )
    assert model_problems(model)[0].endswith("none plain, in unet/ (bf16, fp16); set base_model_variant to one")
    # one that is named has to be there in every part, and the other parts have plain weights only
    assert "has no variant bf16 of the weights in " in model_problems(model, "bf16")[0]
    assert "unet/" not in model_problems(model, "bf16")[0]
    program = [sys.executable, "-", str(model), "--keep-used"]
    (model / "unet/diffusion_pytorch_model.bf16.safetensors").unlink()
    source = (PYTHON / "standalone/model_folder.py").read_text()
    done = subprocess.run(program, input=source, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    assert (model / UNET).is_file()


@pytest.mark.parametrize(("side", "fitting"), [(72, "64 or 80"), (8, "16"), (64, "")])
def test_sizes_name_their_neighbors(side, fitting):
    problem = side_problem("data.resolution", side, 16)
    assert problem.endswith(f"take {fitting}") if fitting else problem == ""
