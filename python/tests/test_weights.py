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
from sdtune.settings import Job, build
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
    assert names == {"unet", "unet-winograd-4", "text_encoder"}
