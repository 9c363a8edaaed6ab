"""The UNet's attention in blocks: the same numbers as torch's, forwards and backwards."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional as F

from sdtune import attention as module
from sdtune.attention import BlockwiseProcessor, attention


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that a test's sequences are longer than, and not a multiple of."""
    monkeypatch.setattr(module, "BLOCK", 5 * 17 // torch.get_num_threads() + 1)
    monkeypatch.setattr(module, "SMALL", 4)


def inputs(dtype, n=17, m=17, d=4, heads=2):
    torch.manual_seed(0)
    return [torch.randn(heads, length, d, dtype=dtype).requires_grad_() for length in (n, m, m)]


@pytest.mark.parametrize("m", [17, 6, 3], ids=["self", "cross", "whole-matrix"])
def test_gradients_are_right(small_blocks, m):
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, 0.4), inputs(torch.float64, m=m))


@pytest.mark.parametrize("flash", [False, True], ids=["blocks", "flash"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_equals_torchs_attention(dtype, tolerance, flash):
    q, k, v = inputs(dtype, n=1300, m=1300, d=40, heads=2)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*wide)
    ours = attention(q, k, v, 40**-0.5, flash=flash)
    direction = torch.randn_like(expected)
    pairs = zip(
        (ours, *torch.autograd.grad(ours, (q, k, v), direction.to(dtype))),
        (expected, *torch.autograd.grad(expected, wide, direction)),
        strict=True,
    )
    for got, want in pairs:
        assert got.dtype == dtype
        assert (got.float() - want).norm() < tolerance * want.norm()


def test_large_logits_survive_bf16():
    """Keys far from zero, as trained networks have them: what all logits of a query share must not cost precision."""
    q, k, v = (x.detach() for x in inputs(torch.float32, n=1300, m=1300, d=40, heads=1))
    k = k + 30 * torch.randn(1, 1, 40)
    expected = F.scaled_dot_product_attention(q, k, v)
    ours = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), 40**-0.5).float()
    theirs = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    assert (ours - expected).norm() < 1.5 * (theirs - expected).norm()


def test_a_unet_says_the_same_with_it(untrained_model, small_blocks):
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval()
    torch.manual_seed(0)
    noisy, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 128)
    with torch.no_grad():
        expected = unet(noisy, torch.tensor([10, 900]), hidden).sample
        unet.set_attn_processor(BlockwiseProcessor())
        torch.testing.assert_close(unet(noisy, torch.tensor([10, 900]), hidden).sample, expected, rtol=1e-4, atol=1e-5)
