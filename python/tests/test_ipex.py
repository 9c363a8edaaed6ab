"""The stack ipex, where the extension is missing, and with a fake extension that records its calls."""

import sys
from types import SimpleNamespace

import pytest
import torch

from sdtune.errors import BadInput
from sdtune.models.sd import StableDiffusion
from sdtune.settings import Job, build


@pytest.fixture
def job(mapping):
    mapping["software_stack"] = "ipex"
    mapping["training"]["mixed_precision"] = "bf16"
    return build(Job, mapping)


def test_it_is_never_left_out_in_silence(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "intel_extension_for_pytorch", None)
    with pytest.raises(BadInput, match=r"ipex is asked for, but intel_extension_for_pytorch does not load"):
        StableDiffusion().load(job)


def test_the_unet_is_optimized_once_and_keeps_its_mapped_weights(job, monkeypatch):
    calls = []

    def optimize(network, **settings):
        calls.append((network, settings))
        return network

    fake = SimpleNamespace(optimize=optimize, disable_auto_channels_last=lambda: calls.append("no copies"))
    monkeypatch.setitem(sys.modules, "intel_extension_for_pytorch", fake)
    networks = StableDiffusion().load(job)
    settings = {"dtype": torch.bfloat16, "inplace": True, "weights_prepack": False}
    assert calls == ["no copies", (networks.unet, settings)]
