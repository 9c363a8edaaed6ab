"""The memory that training is predicted to need, against what its UNet holds on the meta device."""

import json

import pytest

from sdtune.models.footprint import footprint
from tests.conftest import REPOSITORY

SMALL = {
    "block_out_channels": (64, 1280),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


@pytest.mark.parametrize("method", ["textual_inversion", "lora"])
@pytest.mark.parametrize("name", ["small", "sd15", "sdxl"])
def test_a_sample_holds_a_little_more_than_predicted(name, method, untrained_xl, tmp_path, monkeypatch):
    """So that what is refused cannot fit, and little of what is accepted does not."""
    monkeypatch.syspath_prepend(REPOSITORY / "python" / "bench")
    import activations
    import sd15
    import sdxl

    shapes = {"small": SMALL, "sd15": sd15.UNET, "sdxl": sdxl.UNET}[name]
    unet = activations.make_unet(shapes, method)
    held = sum(kind.held for kind in activations.measure(unet, activations.example(unet, 512, method)).values())
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(shapes))
    for part in ("model_index.json", "vae"):
        (tmp_path / part).symlink_to(untrained_xl / part)
    predicted = footprint(tmp_path, 512, bf16=True, adapted=method == "lora").sample
    assert predicted < held < 1.4 * predicted, held / predicted
