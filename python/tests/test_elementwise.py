"""The compiled kernels around matrix multiplications: exact but for one rounding, and never coarser than torch's."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sdtune.ops import normalization, winograd
from sdtune.ops.convolution import WinogradConv2d
from sdtune.ops.kernels import elementwise
from sdtune.ops.normalization import FrozenGroupNorm, norm_gated_gelu
from sdtune.ops.unet import optimize_unet, replace_modules
from sdtune.ops.winograd import BACKWARD, FORWARD, convolve, transform_filters

ONE_ROUNDING = 2e-3
"""Relative error of numbers that are rounded to bf16 once."""


def error(got, want):
    """Relative, over all numbers."""
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def run(call, x, direction):
    """The result of ``call``, and the gradient of x."""
    x = x.detach().requires_grad_()
    out = call(x)
    return out.detach(), torch.autograd.grad(out, x, direction.to(out.dtype))[0]


def as_fine_as_torch(ours, torchs, exact):
    for got, theirs, want in zip(ours, torchs, exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert error(got, want) < ONE_ROUNDING
        assert error(got, want) < 1.02 * error(theirs, want)


@pytest.mark.parametrize(("rows", "width"), [(64, 128), (37, 45), (1, 1)])
def test_gated_gelu(the_kernel, rows, width):
    torch.manual_seed(0)
    both, direction = (2 * torch.randn(rows, n * width) for n in (2, 1))
    both, direction = both.bfloat16(), direction.bfloat16()

    def plain(both):
        a, b = both.chunk(2, dim=-1)
        return a * F.gelu(b)

    out = torch.empty(rows, width, dtype=torch.bfloat16)
    elementwise.gated_gelu(both, out)
    ours = out, elementwise.gated_gelu_backward(both, direction)
    exact = run(plain, both.double(), direction)
    if width > 1:
        as_fine_as_torch(ours, run(plain, both, direction), exact)
    else:
        for got, want in zip(ours, exact, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-5)


def test_gated_gelu_of_every_number(the_kernel):
    """All of bf16, infinities and NaN too, times 1 and in the gradient."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    both = torch.stack([torch.ones_like(every), every])[None].flatten(1)
    out = torch.empty(1, 2**16, dtype=torch.bfloat16)
    elementwise.gated_gelu(both, out)
    _, slope = elementwise.gated_gelu_backward(both, torch.ones_like(out)).chunk(2, dim=-1)
    wide = every.double().requires_grad_()
    want = F.gelu(wide)
    [want_slope] = torch.autograd.grad(want.sum(), wide)
    finite = every.abs() < 1e18  # squared, it is still a number in float32
    for got, exact in ((out[0], want.detach()), (slope[0], want_slope)):
        torch.testing.assert_close(got.double()[finite], exact[finite], rtol=5e-3, atol=5e-7)
        assert got[every.isnan()].isnan().all()
    assert out[0, 0x7F80] == torch.inf


@pytest.mark.parametrize("silu", [False, True], ids=["alone", "silu"])
@pytest.mark.parametrize(
    ("batch", "channels", "side", "groups"),
    [(1, 64, 16, 32), (2, 36, 5, 4), (3, 7, 3, 7), (1, 33, 9, 1), (2, 320, 40, 32)],
)
def test_group_norm(the_kernel, batch, channels, side, groups, silu):
    """Odd channel counts, groups of one channel, one group, and more rows than a part of the sums has."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels).bfloat16().requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(batch, channels, side, side - 1) + torch.randn(channels, 1, 1)).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    direction = torch.randn_like(x)
    exact_norm = copy.deepcopy(norm).double()
    ours = run(lambda x: FrozenGroupNorm(norm)(x, silu=silu), x, direction)
    torchs = run(lambda x: F.silu(norm(x)) if silu else norm(x), x, direction)
    exact = run(lambda x: F.silu(exact_norm(x)) if silu else exact_norm(x), x.double(), direction)
    as_fine_as_torch(ours, torchs, exact)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_group_norm_takes_tensors_as_they_lie(the_kernel):
    torch.manual_seed(0)
    norm = FrozenGroupNorm(nn.GroupNorm(4, 16).bfloat16().requires_grad_(False))
    x, direction = torch.randn(2, 16, 6, 6).bfloat16(), torch.randn(2, 16, 1, 1).bfloat16().expand(2, 16, 6, 6)
    last = torch.channels_last
    want = run(norm, x.contiguous(memory_format=last), direction.contiguous(memory_format=last))
    for other in (x, x.transpose(2, 3).contiguous().transpose(2, 3), torch.stack([x, x], -1)[..., 0]):
        assert all(torch.equal(got, expected) for got, expected in zip(run(norm, other, direction), want, strict=True))


def test_group_norm_of_numbers_far_from_zero(the_kernel):
    """The variance is a small difference of large sums."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 32).bfloat16().requires_grad_(False)
    x = (torch.randn(1, 32, 64, 64) + 30).bfloat16()
    direction = torch.randn(1, 32, 64, 64).bfloat16()
    exact = run(copy.deepcopy(norm).double(), x.double(), direction)
    as_fine_as_torch(run(FrozenGroupNorm(norm), x, direction), run(norm, x, direction), exact)


def test_group_norm_hands_on_a_nan(the_kernel):
    norm = FrozenGroupNorm(nn.GroupNorm(2, 4).bfloat16().requires_grad_(False))
    x = torch.randn(2, 4, 3, 3).bfloat16()
    x[0, 0, 0, 0] = torch.nan
    out = norm(x)
    assert out[0, :2].isnan().all()
    assert out[0, 2:].isfinite().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("batch", "channels", "h", "w"), [(1, 64, 16, 16), (2, 19, 6, 4), (3, 1, 2, 2)])
def test_winograd_transforms(the_kernel, batch, channels, h, w, with_bias):
    torch.manual_seed(0)
    image = torch.randn(batch, h, w, channels).bfloat16()
    products = torch.randn(4, 4, batch * h * w // 4, channels).bfloat16()
    bias = torch.randn(channels).bfloat16() if with_bias else None
    for slots in (FORWARD, BACKWARD):
        padded = F.pad(image, (0, 0, 1, 1, 1, 1))
        got = elementwise.winograd_image(image, 0, h // 2, slots)
        want, theirs = (winograd._transform_input(x, slots).view(got.shape) for x in (padded.double(), padded))
        assert error(got, want) < min(ONE_ROUNDING, 1.02 * error(theirs, want))
        out = torch.empty_like(image)
        elementwise.winograd_products(products, bias, 0, h // 2, slots, out)
        results = []
        for dtype in (torch.double, torch.bfloat16):
            parts, result = products.to(dtype), image.new_empty(image.shape, dtype=dtype)
            if bias is not None:
                parts = parts.clone()
                parts[1, 1] += bias
            winograd._transform_output(parts, slots, result)
            results.append(result)
        assert error(out, results[0]) < min(ONE_ROUNDING, 1.02 * error(results[1], results[0]))


@pytest.mark.parametrize("tiles", [4, winograd.TILES], ids=["strips", "whole"])
def test_winograd_convolution_with_the_kernel_is_not_coarser(the_kernel, monkeypatch, tiles):
    monkeypatch.setattr(winograd, "TILES", tiles)
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 48, 3, padding=1).bfloat16().requires_grad_(False)
    filters = transform_filters(plain.weight)
    ours = WinogradConv2d(plain, filters, kernel=True)
    x, direction = torch.randn(2, 64, 14, 8).bfloat16(), torch.randn(2, 48, 14, 8).bfloat16()
    exact = run(copy.deepcopy(plain).double(), x.double(), direction)
    with_kernel = run(ours, x, direction)
    without = run(lambda x: convolve(x, filters, plain.bias), x, direction)
    for got, theirs, want in zip(with_kernel, without, exact, strict=True):
        assert error(got, want) < error(theirs, want) < 0.01


def test_results_are_the_same_with_any_number_of_threads(the_kernel):
    torch.manual_seed(0)
    x, d_x = torch.randn(2, 900, 70).bfloat16(), torch.randn(2, 900, 70).bfloat16()
    weight, image = torch.randn(70).bfloat16(), torch.randn(2, 10, 12, 70).bfloat16()
    both = torch.randn(100, 140).bfloat16()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            normed, statistics = elementwise.group_norm(x, weight, weight, 7, 1e-5, True)
            gated, pixels = both.new_empty(100, 70), torch.empty_like(image)
            elementwise.gated_gelu(both, gated)
            transformed = elementwise.winograd_image(image, 1, 3, FORWARD)
            elementwise.winograd_products(transformed, weight, 1, 3, BACKWARD, pixels)
            d_normed = elementwise.group_norm_backward(x, weight, weight, statistics, d_x, 7, True)
            d_both = elementwise.gated_gelu_backward(both, gated)
            results.append((normed, statistics, d_normed, gated, d_both, transformed, pixels[:, 2:8].clone()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_an_image_alone_equals_that_image_in_a_batch(the_kernel):
    torch.manual_seed(0)
    norm = FrozenGroupNorm(nn.GroupNorm(4, 20).bfloat16().requires_grad_(False))
    x = torch.randn(3, 20, 8, 8).bfloat16()
    assert torch.equal(norm(x)[1:2], norm(x[1:2]))


def test_operands_that_do_not_fit_are_refused():
    x, weight = torch.zeros(1, 4, 8, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.bfloat16)
    image = torch.zeros(1, 4, 4, 8, dtype=torch.bfloat16)
    for call, why in (
        (lambda: elementwise.gated_gelu(x[0].float(), x[0]), "bf16, contiguous"),
        (lambda: elementwise.gated_gelu(x[0], x[0]), "do not fit together"),
        (lambda: elementwise.gated_gelu_backward(x[0], x[0, :, ::2]), "bf16, contiguous"),
        (lambda: elementwise.group_norm(x, weight[1:], weight, 2, 1e-5, False), "do not fit together"),
        (lambda: elementwise.group_norm(x, weight, weight, 3, 1e-5, False), "no 3 groups"),
        (lambda: elementwise.group_norm(x[:, :0], weight, weight, 2, 1e-5, False), "not empty"),
        (lambda: elementwise.group_norm_backward(x, weight, weight, x, x, 2, False), "statistics of another pass"),
        (lambda: elementwise.winograd_image(image, 1, 2, FORWARD), "no 2 rows of tiles from 1 on"),
        (lambda: elementwise.winograd_image(image[:, 1:], 0, 1, FORWARD), "no 1 rows of tiles"),
        (lambda: elementwise.winograd_image(image, 0, 1, (0, 1, 2, 2)), "no order of four rows"),
        (lambda: elementwise.winograd_products(image, None, 0, 2, FORWARD, image), "do not fit together"),
    ):
        with pytest.raises(ValueError, match=why):
            call()


def test_they_are_operators_of_torch(the_kernel):
    """Schemas, and shapes without data."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 10, 8).bfloat16(), torch.randn(8).bfloat16()
    image, products = torch.randn(1, 4, 4, 8).bfloat16(), torch.randn(4, 4, 4, 8).bfloat16()
    _, statistics = elementwise.group_norm(x, weight, weight, 2, 1e-5, True)
    for operator, operands in (
        (torch.ops.sdtune.gated_gelu, (x[0], x[0, :, :4].contiguous())),
        (torch.ops.sdtune.gated_gelu_backward, (x[0], x[0, :, :4].contiguous())),
        (torch.ops.sdtune.group_norm, (x, weight, weight, 2, 1e-5, True)),
        (torch.ops.sdtune.group_norm_backward, (x, weight, weight, statistics, x, 2, True)),
        (torch.ops.sdtune.winograd_image, (image, 0, 2, list(FORWARD))),
        (torch.ops.sdtune.winograd_products, (products, weight, 0, 2, list(FORWARD), image)),
    ):
        torch.library.opcheck(operator, operands)


def test_what_is_not_bf16_goes_to_torch():
    torch.manual_seed(0)
    plain = ResnetBlock2D(in_channels=4, out_channels=6, temb_channels=5, groups=2).double().requires_grad_(False)
    parent = nn.Sequential(copy.deepcopy(plain))
    replace_modules(parent, kernel=True)
    assert type(parent[0].norm1) is FrozenGroupNorm
    assert parent[0].state_dict().keys() == plain.state_dict().keys()
    inputs = (torch.randn(2, 4, 5, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64))
    torch.testing.assert_close(parent[0](*inputs), plain(*inputs))
    assert torch.autograd.gradcheck(parent[0], tuple(x.requires_grad_() for x in inputs))
    norm, linear = nn.LayerNorm(6).double(), nn.Linear(6, 8).double().requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(norm_gated_gelu(x, norm, linear, kernel=True), norm_gated_gelu(x, norm, linear))
    tokens = torch.randn(2, 4, 3, dtype=torch.float64)  # no image
    assert FrozenGroupNorm(nn.GroupNorm(2, 4).double())(tokens).shape == tokens.shape


def test_a_learned_norm_stays():
    parent = nn.Sequential(nn.GroupNorm(2, 4))
    replace_modules(parent, kernel=True)
    assert type(parent[0]) is nn.GroupNorm


@pytest.mark.parametrize("widest", [5, 6], ids=["saved", "recomputed"])
def test_a_normalized_gated_gelu_with_the_kernel(the_kernel, monkeypatch, widest):
    """In blocks whose last one is shorter, and with a gradient that is no block of memory."""
    monkeypatch.setattr(normalization, "BLOCK_ROWS", 4)
    monkeypatch.setattr(normalization, "RECOMPUTED_CHANNELS", widest)
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).bfloat16().requires_grad_(False)
    linear = nn.Linear(6, 48).bfloat16().requires_grad_(False)
    x = torch.randn(2, 3, 6).bfloat16()
    exact = copy.deepcopy(norm).double(), copy.deepcopy(linear).double()
    direction = torch.randn(2, 1, 24).bfloat16().expand(2, 3, 24)
    want = run(lambda x: norm_gated_gelu(x, *exact), x.double(), direction)
    theirs = run(lambda x: norm_gated_gelu(x, norm, linear), x, direction)
    ours = run(lambda x: norm_gated_gelu(x, norm, linear, kernel=True), x, direction)
    for got, other, expected in zip(ours, theirs, want, strict=True):
        assert error(got, expected) < 1.1 * error(other, expected)


class Operators(TorchDispatchMode):
    """Records the names of the operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "attention"), [(torch.bfloat16, "blockwise"), (torch.bfloat16, "sdpa"), (torch.float32, "blockwise")]
)
def test_an_optimized_unet_takes_them_in_bf16(the_kernel, untrained_model, dtype, attention):
    """And not with ``sdpa``, which every message about missing kernels names as the way out."""
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval().requires_grad_(False)
    torch.manual_seed(0)
    hidden, direction = torch.randn(1, 77, 128), torch.randn(1, 4, 8, 8)
    inputs = {"sample": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([10])}

    def learn(unet, dtype):
        hidden_in = hidden.to(dtype).requires_grad_()
        out = unet(inputs["sample"].to(dtype), inputs["timestep"], hidden_in).sample
        return out.detach(), torch.autograd.grad(out, hidden_in, direction.to(dtype))[0]

    exact, plain = learn(unet, torch.float32), learn(copy.deepcopy(unet).to(dtype), dtype)
    unet = unet.to(dtype)
    example = {name: x.to("meta") for name, x in inputs.items()} | {"encoder_hidden_states": hidden.to("meta")}
    optimize_unet(unet, example_inputs=example, attention=attention, convolution="direct")
    with Operators() as operators:
        ours = learn(unet, dtype)
    used = {"group_norm", "group_norm_backward", "gated_gelu", "gated_gelu_backward"} & operators.names
    assert len(used) == (4 if (dtype, attention) == (torch.bfloat16, "blockwise") else 0)
    for got, theirs, want in zip(ours, plain, exact, strict=True):
        assert error(got, want) < max(1.1 * error(theirs, want), 1e-4)
