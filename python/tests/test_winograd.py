"""Winograd's convolution against the direct sum."""

import pytest
import torch
from torch.nn import functional as F

from sdtune.ops import winograd
from sdtune.ops.winograd import convolve, transform_filters


def direct(x, weight, bias, doubled):
    return F.conv2d(F.interpolate(x, scale_factor=2.0) if doubled else x, weight, bias, padding=1)


@pytest.mark.parametrize("doubled", [False, True], ids=["plain", "doubled"])
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 2)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tiles", [4, winograd.TILES], ids=["strips", "whole"])
def test_the_result_and_its_gradient(monkeypatch, doubled, size, with_bias, tiles):
    monkeypatch.setattr(winograd, "TILES", tiles)
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(5, 3, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    bias = bias if with_bias else None
    filters = transform_filters(weight, doubled=doubled)
    want, got = direct(x, weight, bias, doubled), convolve(x, filters, bias)
    torch.testing.assert_close(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    direction = torch.randn_like(want)
    torch.testing.assert_close(torch.autograd.grad(got, x, direction), torch.autograd.grad(want, x, direction))
    assert torch.autograd.gradcheck(lambda x: convolve(x, filters, bias), x)


@pytest.mark.parametrize("doubled", [False, True], ids=["plain", "doubled"])
def test_bf16_is_a_little_coarser_than_the_direct_sum_and_no_more(doubled):
    """Relative errors of the direct sum are 0.002 (its last rounding); a wrong term would show as 0.1 or more."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64, 16, 16), torch.randn(64, 64, 3, 3) / 24
    want = direct(x.bfloat16().double(), weight.bfloat16().double(), None, doubled)
    got = convolve(x.bfloat16(), transform_filters(weight.bfloat16(), doubled=doubled), None)
    assert (got.double() - want).norm() / want.norm() < 0.01
