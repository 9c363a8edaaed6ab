"""Converted weights: written once per host, mapped by every rank, with the same values."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdtune.errors import BadInput
from sdtune.methods.registry import method_of
from sdtune.models.registry import family_of
from sdtune.models.weights import load_converted
from sdtune.ops import kernels
from sdtune.ops.winograd_selection import KERNEL_PIXELS, WINOGRAD_PIXELS
from sdtune.settings import Job, build
from standalone import cached_weights
from tests.conftest import PATIENCE

PYTHON = Path(__file__).parents[1]


def convert(model, cache, load=None, dtype=torch.bfloat16):
    def from_folder():
        return UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=dtype)

    def empty():
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model, subfolder="unet"))

    return load_converted(load or from_folder, empty, cache, "unet", "f", dtype)


def test_the_converted_network_computes_the_same(untrained_model, tmp_path):
    ours = convert(untrained_model, tmp_path)
    theirs = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet", torch_dtype=torch.bfloat16)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not a.requires_grad
    assert ours.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not ours.training


def test_the_second_rank_maps_what_the_first_wrote(untrained_model, tmp_path):
    def fail():
        raise AssertionError("converted a second time")

    convert(untrained_model, tmp_path)
    again = convert(untrained_model, tmp_path, load=fail)
    [file] = tmp_path.glob("*.safetensors")
    address = again.conv_in.weight.data_ptr()
    owners = [
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)
    ]
    assert owners == [str(file)]  # not a private copy


def test_ranks_that_start_together_convert_once(untrained_model, tmp_path):
    script = (
        "import sys, time; from tests.test_weights import *\n"
        "def load():\n"
        "    open(sys.argv[2] + '/converted', 'a').write('x'); time.sleep(0.5)\n"
        "    return UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder='unet', torch_dtype=torch.bfloat16)\n"
        "convert(sys.argv[1], Path(sys.argv[2]), load)\n"
    )
    command = [sys.executable, "-c", script, str(untrained_model), str(tmp_path)]
    ranks = [subprocess.Popen(command, cwd=PYTHON, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(3)]
    assert [rank.wait(timeout=PATIENCE) for rank in ranks] == [0, 0, 0]
    assert (tmp_path / "converted").read_text() == "x"
    assert not list(tmp_path.glob("*.tmp"))


def damage(file, *, keep_time):
    """Change a byte in the middle."""
    status = file.stat()
    with file.open("r+b") as opened:
        opened.seek(status.st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, 1)
        opened.write(bytes([byte ^ 64]))
    if keep_time:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(file, (0, 0))


def ask(command, folder):
    """What provision.yml (remove) and diagnose.yml (look) ask a host."""
    argv = [sys.executable, "-I", "-", command, str(folder)]
    program = Path(cached_weights.__file__).read_text()
    return subprocess.run(argv, input=program, capture_output=True, text=True, check=True).stdout


def test_a_file_that_changed_is_made_again(untrained_model, tmp_path):
    before = convert(untrained_model, tmp_path).state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    [file] = tmp_path.glob("*.safetensors")
    damages = [
        lambda: damage(file, keep_time=False),
        lambda: os.truncate(file, 1000),
        lambda: cached_weights.record_of(file).write_text("{}"),
        file.unlink,
    ]
    for broken in damages:
        broken()
        assert cached_weights.problem(file) if file.exists() else True
        again = convert(untrained_model, tmp_path).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
        assert cached_weights.problem(file, content=True) == ""


def test_a_damage_that_left_size_and_time_is_found_by_content_and_removed(untrained_model, tmp_path):
    assert ask("look", tmp_path / "none yet") == ""
    convert(untrained_model, tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    damage(file, keep_time=True)
    assert cached_weights.problem(file) == ""
    assert ask("look", tmp_path) == f"{file.name} (its content is not what was written)\n"
    assert ask("remove", tmp_path) == f"{file.name} (its content is not what was written)\n"
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    convert(untrained_model, tmp_path)
    assert ask("remove", tmp_path) == ""
    assert file.exists()


def test_a_full_disk_is_refused_and_leaves_nothing(untrained_model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(BadInput, match=r"weights_cache: .* has 0 MB free, but"):
        convert(untrained_model, tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]


def test_bf16_training_holds_no_float32_copy_of_the_networks(mapping, tmp_path):
    mapping["training"] |= {"mixed_precision": "bf16", "convolution": "winograd"}
    mapping["model"]["weights_cache"] = str(tmp_path / "cache")
    job = build(Job, mapping)
    family = family_of(job.model.path)
    networks = family.load(job)
    method = method_of(job)(job, networks)
    modules = (networks.unet, networks.text_encoders["text_encoder"].model)
    wide = [p for module in modules for p in module.parameters() if p.dtype == torch.float32]
    [learned] = method.learned.values()
    assert [id(p) for p in wide] == [id(learned.parameter)]
    names = {
        path.name.split(f"-{family.fingerprint(Path(job.model.path))}")[0]
        for path in (tmp_path / "cache").glob("*.safetensors")
    }
    smallest = KERNEL_PIXELS if kernels.usable() else WINOGRAD_PIXELS
    assert names == {"unet", f"unet-winograd-4-{smallest}", "text_encoder"}
