"""The parts of a model are judged without reading a weight, and none is used with numbers that nobody has trained."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from sdtune.errors import BadInput
from sdtune.inference.plan import make_plan
from sdtune.inference.prompts import read_tokenizer
from sdtune.inference.tiny_autoencoder import check_tiny, load_tiny
from sdtune.models.folder import refusing
from sdtune.models.loading import load_network
from sdtune.models.pipelines import load_pipeline, load_text_encoder
from sdtune.models.registry import check_folder, family_of
from sdtune.settings import GenerationJob
from standalone.model_folder import layout_of

FILES = {"text_encoder": "model", "text_encoder_2": "model"}


def change(model, part, call):
    """Change the tensors of a part by ``call(name, tensor)``, which returns the new name, or None."""
    path = model / part / f"{FILES.get(part, 'diffusion_pytorch_model')}.safetensors"
    tensors = {new: tensor for name, tensor in load_file(path).items() if (new := call(name, tensor))}
    save_file(tensors, path, metadata={"format": "pt"})


def edit(model, file, **values):
    path = model / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def problem(model):
    with pytest.raises(BadInput) as refused:
        family_of(model).check(model, {})
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"model.path: {model} ")
    return str(refused.value)


@pytest.fixture
def model(untrained_model, tmp_path):
    return shutil.copytree(untrained_model, tmp_path / "model")


@pytest.mark.parametrize("family", ["untrained_model", "untrained_xl"])
def test_a_tensor_that_is_missing_is_named_in_every_part_of_both_families(family, request, tmp_path):
    whole = request.getfixturevalue(family)
    family_of(whole).check(whole, {})
    for part in layout_of(whole).weights:
        model = shutil.copytree(whole, tmp_path / part)
        gone = []
        # the last bias of a norm: nothing that the names of the control node's check would notice in a UNet or VAE
        change(model, part, lambda name, _, gone=gone: name if "norm" not in name or gone else gone.append(name))
        assert gone[0].removeprefix("text_model.") in problem(model)
        assert f"{part}/" in problem(model)
        shutil.rmtree(model)


def test_more_than_a_configuration_needs_is_refused_where_it_would_be_left_out(model):
    change(model, "unet", lambda name, _: name)
    extra = {**load_file(model / "unet/diffusion_pytorch_model.safetensors"), "more.weight": torch.zeros(1)}
    save_file(extra, model / "unet/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    assert "that its configuration does not need: more.weight" in problem(model)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"act_fn": "x"}, "unet/config.json with act_fn: 'x' that makes no network"),
        ("unet/config.json", {"norm_eps": float("nan")}, "says norm_eps: nan in unet/config.json, which is no number"),
        ("unet/config.json", {"freq_shift": "x"}, "unet/config.json with freq_shift: 'x' whose network cannot compute"),
        ("vae/config.json", {"norm_num_groups": 7}, "vae/config.json that makes no network (ValueError: "),
        ("text_encoder/config.json", {"hidden_act": "x"}, "text_encoder/config.json with hidden_act: 'x'"),
        ("text_encoder/config.json", {"num_attention_heads": 3}, "attention heads"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, "makes no noise schedule (NotImplementedError"),
        ("scheduler/scheduler_config.json", {"beta_start": "x"}, "makes no noise schedule ("),
        ("scheduler/scheduler_config.json", {"beta_end": 5.0}, "does not go from 1 towards 0"),
        ("scheduler/scheduler_config.json", {"beta_start": float("nan")}, "says beta_start: nan in scheduler/"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "x"}, "makes no noise schedule ("),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "of 2 betas (trained_betas), and 1000 time"),
        ("tokenizer/tokenizer_config.json", {"eos_token": "<zzz>"}, "with the token '<zzz>' of number"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "names 'T5Tokenizer' as the class of"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": None}, "names None as the class of tokenizer/"),
        ("tokenizer/tokenizer_config.json", {"added_tokens_decoder": {"99999": {"content": "<x>"}}}, "tokenizer/"),
        ("tokenizer/special_tokens_map.json", {"eos_token": "<zzz>"}, "with the token '<zzz>' of number"),
        ("tokenizer/added_tokens.json", {"<x>": 99999}, "with the token '<x>' of number"),
    ],
)
def test_a_configuration_that_makes_nothing_names_its_file_and_key(model, file, values, message):
    edit(model, file, **values)
    assert message in problem(model)


def test_a_tokenizer_that_its_library_does_not_take(model):
    (model / "tokenizer/tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(BadInput, match="holds a tokenizer in tokenizer/ that cannot be used"):
        family_of(model).load_tokenizers(model)


def test_weights_that_are_not_finite_name_the_model(model):
    """Not the learning rate, which would be blamed for the loss."""
    change(model, "text_encoder", lambda name, tensor: tensor.view(-1)[:1].fill_(torch.nan) is not None and name)
    with pytest.raises(BadInput, match=r"weights in text_encoder/ that are not finite, such as .*; fetch it again"):
        load_text_encoder(model, "text_encoder", torch.float32)


def test_random_numbers_are_in_no_network(model):
    """Also where nothing was checked before."""
    change(model, "text_encoder", lambda name, _: f"_orig_mod.{name}")
    for load in (lambda: load_text_encoder(model, "text_encoder", torch.float32), lambda: load_pipeline(model)):
        with pytest.raises(BadInput, match="weights in text_encoder/ that lack"):
            load()


def test_a_panic_of_a_library_becomes_one_line(tmp_path):
    """Those written in Rust raise an exception that is no Exception."""

    class PanicException(BaseException):
        pass

    said = r"holds x \(PanicException: 'a b'\); fetch the model again"
    with pytest.raises(BadInput, match=said), refusing(tmp_path, "holds x"):
        raise PanicException("a\nb")
    with pytest.raises(KeyboardInterrupt), refusing(tmp_path, "holds x"):
        raise KeyboardInterrupt
    with pytest.raises(BadInput, match="weights in unet/ that cannot be loaded"):
        load_network(type("Fake", (), {}), tmp_path, "unet")


@pytest.fixture
def tiny(tmp_path):
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**widths).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def tiny_problem(folder, channels=4):
    with pytest.raises(BadInput) as refused:
        check_tiny(str(folder), channels)
    assert str(refused.value).startswith("tiny_autoencoder: ")
    return str(refused.value)


def test_the_decoder_for_previews_is_judged_as_the_networks_of_a_model_are(tiny, untrained_model):
    check_tiny(str(tiny), 4)
    load_tiny(str(tiny))
    assert "whose network cannot compute" in tiny_problem(tiny, channels=16)
    assert "holds 'AutoencoderKL', not an AutoencoderTiny" in tiny_problem(untrained_model / "vae")
    change(tiny, ".", lambda name, _: name if name.startswith("encoder") else None)
    assert "that lack decoder." in tiny_problem(tiny)
    with pytest.raises(BadInput, match=r"tiny_autoencoder: .* has weights in tiny/ that lack decoder\."):
        load_tiny(str(tiny))
    (tiny / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a pointer of Git LFS" in tiny_problem(tiny)
    (tiny / "config.json").write_text("[]")
    assert "holds no object" in tiny_problem(tiny)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("unet/config.json", None, "has no unet/config.json"),
        ("unet/config.json", "[]", "unet/config.json that is no JSON object"),
        ("text_encoder/config.json", "[]", "text_encoder/config.json that is no JSON object"),
        ("model_index.json", "", "holds a model_index.json that cannot be read"),
        ("model_index.json", "[]", "holds a model_index.json that is no JSON object"),
        ("tokenizer/tokenizer.json", "{}", "a tokenizer in tokenizer/ that cannot be used"),
        ("tokenizer/tokenizer.json", "[]", "tokenizer/tokenizer.json that is no JSON object"),
        ("tokenizer/tokenizer_config.json", '{"model_max_length": "x"}', "says model_max_length: 'x'"),
        ("unet/diffusion_pytorch_model.safetensors", "version https://git-lfs", "is a pointer of Git LFS"),
    ],
)
def test_a_folder_to_draw_from_is_judged_as_one_to_train_with(model, tmp_path, file, content, said):
    (model / file).unlink()
    if content is not None:
        (model / file).write_text(content)
    size = {"height": 64, "width": 64}
    with pytest.raises(BadInput) as refused:
        make_plan(GenerationJob(run_dir=str(tmp_path), source="model", model=str(model), prompts=["a"], **size))
    assert str(refused.value).startswith(f"model: {model} ")
    assert said in str(refused.value)
    with pytest.raises(BadInput) as refused:
        check_folder(model, "source", "train once more")
    assert str(refused.value).startswith(f"source: {model} ")
    assert "fetch" not in str(refused.value)


def test_a_model_for_another_task_and_a_folder_that_is_missing_draw_nothing(model, tmp_path):
    edit(model, "unet/config.json", in_channels=9)
    for folder, said in ((model, "is an inpainting model"), (tmp_path / "none", "does not exist")):
        with pytest.raises(BadInput, match=said):
            make_plan(GenerationJob(run_dir=str(tmp_path), source="model", model=str(folder), prompts=["a"]))


def test_a_tokenizer_that_is_damaged_after_its_export_is_one_line(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="holds a tokenizer in tokenizer/ that cannot be used"):
        read_tokenizer(tmp_path)
