"""Operations that save less for the backward pass: the same numbers, fewer bytes."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from sdtune.ops import convolution, normalization, winograd
from sdtune.ops.blocks import FrozenResnetBlock, FrozenTransformerBlock
from sdtune.ops.unet import optimize_unet, replace_modules
from sdtune.ops.winograd_selection import KERNEL_PIXELS, WINOGRAD_PIXELS, convolution_inputs, winograd_filters

TOYWORLD = Path(__file__).parents[2] / "toyworld" / "model"

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
# What Winograd's method took in version 0.1, which chose by the modules' names.
SD15_WINOGRAD = {
    f"{block}.resnets.{i}.conv{j}"
    for block, count in (("down_blocks.0", 2), ("down_blocks.1", 2), ("up_blocks.2", 3), ("up_blocks.3", 3))
    for i in range(count)
    for j in (1, 2)
}
# What it also takes where compiled kernels transform tiles: images of 16 x 16.
SD15_SMALL = {
    f"{block}.resnets.{i}.conv{j}"
    for block, count in (("down_blocks.2", 2), ("up_blocks.1", 3))
    for i in range(count)
    for j in (1, 2)
}
SD15_DOUBLED = {f"up_blocks.{i}.upsamplers.0.conv" for i in range(3)}
TOYWORLD_DOUBLED = {"up_blocks.0.upsamplers.0.conv"}


def example_inputs(unet, side):
    return {
        "sample": torch.empty(1, 4, side, side, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": torch.empty(1, 1, unet.config.cross_attention_dim, device="meta"),
    }


def frozen(module):
    """``module`` with its operations replaced; the module itself, too."""
    parent = nn.Sequential(copy.deepcopy(module))
    replace_modules(parent)
    return parent[0]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 6)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (1, 4, 7, 5)),
        (nn.Conv2d(3, 2, 1), (1, 3, 4, 4)),
    ],
    ids=["conv", "strided-groups", "1x1"],
)
def test_gradients_are_right(module, shape):
    torch.manual_seed(0)
    plain = module.double().requires_grad_(False)
    ours = frozen(plain)
    assert type(ours) is convolution.FrozenConv2d
    assert ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), plain(x))
    assert torch.autograd.gradcheck(ours, x)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("out_channels", [4, 6], ids=["same", "with-shortcut"])
def test_gradients_of_a_residual_block_are_right(out_channels, scale):
    torch.manual_seed(0)
    plain = ResnetBlock2D(
        in_channels=4, out_channels=out_channels, temb_channels=5, groups=2, output_scale_factor=scale
    )
    plain = plain.double().requires_grad_(False)
    ours = frozen(plain)
    assert type(ours) is FrozenResnetBlock
    assert ours.state_dict().keys() == plain.state_dict().keys()
    inputs = (torch.randn(2, 4, 5, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64))
    torch.testing.assert_close(ours(*inputs), plain(*inputs))
    assert torch.autograd.gradcheck(ours, tuple(x.requires_grad_() for x in inputs))


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_small_convolution_with_many_weights_is_one_matrix_multiplication(monkeypatch, with_bias):
    monkeypatch.setattr(convolution, "MANY_WEIGHTS", 1)
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, 3, padding=1, bias=with_bias).double().requires_grad_(False)
    plain.weight.data = plain.weight.data.contiguous(memory_format=torch.channels_last)
    ours = frozen(plain)
    monkeypatch.setattr(convolution, "_Convolution", None)  # the other way does not work any more
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), plain(x))
    assert torch.autograd.gradcheck(ours, x)


@pytest.mark.parametrize("widest", [5, 6], ids=["saved", "recomputed"])
def test_gradients_of_a_gated_gelu_are_right(monkeypatch, widest):
    """With the normalization before it, in blocks whose last one is shorter."""
    monkeypatch.setattr(normalization, "BLOCK_ROWS", 4)
    monkeypatch.setattr(normalization, "RECOMPUTED_CHANNELS", widest)
    torch.manual_seed(0)
    plain = BasicTransformerBlock(6, num_attention_heads=1, attention_head_dim=6).double().requires_grad_(False)
    torch.nn.init.normal_(plain.norm3.weight)
    torch.nn.init.normal_(plain.norm3.bias)
    ours = frozen(plain)
    assert type(ours) is FrozenTransformerBlock
    assert ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), plain(x))

    def feed_forward(x):
        return ours.ff.net[2](normalization.norm_gated_gelu(x, ours.norm3, ours.ff.net[0].proj))

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        feed_forward(x)
    assert (2, 3, 6) in saved
    assert ((4, 48) in saved) == (widest == 5)
    assert torch.autograd.gradcheck(feed_forward, x)


def test_a_transformer_block_with_cross_attention_computes_the_same():
    torch.manual_seed(0)
    plain = BasicTransformerBlock(6, num_attention_heads=1, attention_head_dim=6, cross_attention_dim=4)
    plain = plain.double().requires_grad_(False)
    ours = frozen(plain)
    x, context = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    inputs = {"hidden_states": x, "encoder_hidden_states": context}
    torch.testing.assert_close(ours(**inputs), plain(**inputs))


def test_blocks_of_another_kind_stay():
    """Replaced, they would compute something else."""
    kinds = (
        ResnetBlock2D(in_channels=4, temb_channels=5, groups=2, time_embedding_norm="scale_shift"),
        ResnetBlock2D(in_channels=4, temb_channels=5, groups=2, non_linearity="gelu"),
        ResnetBlock2D(in_channels=4, temb_channels=5, groups=2, up=True),
        BasicTransformerBlock(6, 1, 6, activation_fn="gelu"),
        BasicTransformerBlock(6, 1, 6, norm_type="ada_norm", num_embeds_ada_norm=3),
        nn.Conv2d(3, 5, 3, padding="same"),
        nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
    )
    for module in kinds:
        assert type(frozen(module)) is type(module)


def test_winograd_upsampling_of_an_odd_size_is_direct():
    torch.manual_seed(0)
    plain = Upsample2D(4, use_conv=True).double().requires_grad_(False)
    filters = winograd.transform_filters(plain.conv.weight, doubled=True)
    ours = convolution.WinogradUpsample2D(plain, filters)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours(x, output_size=(5, 9)), plain(x, output_size=(5, 9)))


def test_winograd_convolution_of_an_odd_size_is_direct():
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, 3, padding=1).double().requires_grad_(False)
    ours = convolution.WinogradConv2d(plain, winograd.transform_filters(plain.weight))
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for size in ((3, 4), (4, 3), (4, 4)):
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(ours(x), plain(x))


@pytest.mark.parametrize(
    ("config", "side", "pixels", "plain", "doubled"),
    [
        (SD15, 64, WINOGRAD_PIXELS, SD15_WINOGRAD, SD15_DOUBLED),
        (SD15, 64, KERNEL_PIXELS, SD15_WINOGRAD | SD15_SMALL, SD15_DOUBLED),
        (None, 8, KERNEL_PIXELS, set(), TOYWORLD_DOUBLED),
    ],
    ids=["sd15-512px", "sd15-512px-kernel", "toyworld-64px"],
)
def test_convolutions_for_winograd(config, side, pixels, plain, doubled):
    config = config or UNet2DConditionModel.load_config(TOYWORLD, subfolder="unet")
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(config)
    filters = winograd_filters(unet, example_inputs(unet, side), min_pixels=pixels)
    assert {name for name, tensor in filters.items() if len(tensor) == 4} == plain
    assert {name for name, tensor in filters.items() if len(tensor) == 3} == doubled


def test_the_shapes_seen_are_those_of_a_real_call(untrained_model):
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval()
    before = convolution_inputs(unet, example_inputs(unet, 32))
    shapes = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o, name=name: shapes.update({name: i[0].shape}))
    with torch.no_grad():
        unet(torch.randn(1, 4, 32, 32), torch.tensor([10]), torch.randn(1, 1, 128))
    assert before == shapes


def test_a_unet_with_winograd_computes_the_same(untrained_model):
    """The embedded model's UNet has two levels; its first and last convolutions have too few channels."""
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval().requires_grad_(False)
    inputs = (torch.randn(1, 4, 32, 32), torch.tensor([10]), torch.randn(1, 77, 128))
    before = unet(*inputs).sample
    shapes = convolution_inputs(unet, example_inputs(unet, 32))
    filters = winograd_filters(unet, example_inputs(unet, 32), min_pixels=32 * 32)
    large = {name for name, shape in shapes.items() if shape[2] == 32 and shape[1] >= 64}
    large = {n for n in large - {"conv_out"} if unet.get_submodule(n).kernel_size == (3, 3)}
    large = {n for n in large if unet.get_submodule(n).stride == (1, 1)}
    assert filters.keys() == large | TOYWORLD_DOUBLED
    replace_modules(unet, filters)
    winograds = {n for n, m in unet.named_modules() if isinstance(m, convolution.WinogradConv2d)}
    assert winograds == large - TOYWORLD_DOUBLED
    torch.testing.assert_close(unet(*inputs).sample, before, rtol=1e-4, atol=1e-5)


def test_winograd_in_bf16_costs_a_trained_unet_little():
    """Errors of prediction and gradient against float32: the direct sum's in bf16, and not twice of that."""
    torch.manual_seed(0)
    noisy, times = torch.randn(4, 4, 8, 8), torch.tensor([10, 300, 600, 900])
    hidden, direction = torch.randn(4, 77, 128), torch.randn(4, 4, 8, 8)

    def run(dtype, pixels=None):
        unet = UNet2DConditionModel.from_pretrained(TOYWORLD, subfolder="unet", torch_dtype=dtype).eval()
        unet.requires_grad_(False).to(memory_format=torch.channels_last)
        text = hidden.to(dtype).requires_grad_()
        inputs = {"sample": noisy.to(dtype), "timestep": times, "encoder_hidden_states": text}
        replace_modules(unet, winograd_filters(unet, inputs, min_pixels=pixels) if pixels else {})
        out = unet(**inputs).sample
        [gradient] = torch.autograd.grad(out, text, direction.to(dtype))
        return out.detach().float(), gradient.float()

    exact, direct, ours = run(torch.float32), run(torch.bfloat16), run(torch.bfloat16, pixels=16)
    for want, theirs, got in zip(exact, direct, ours, strict=True):
        assert 0 < (got - want).norm() < 1.6 * (theirs - want).norm()


def saved_bytes(network, *inputs):
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(*inputs).sample
    return out, sum(storages.values())


def test_a_unet_saves_less_and_computes_the_same(untrained_model):
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval().requires_grad_(False)
    torch.manual_seed(0)
    noisy, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 128, requires_grad=True)
    inputs = (noisy, torch.tensor([10, 900]), hidden)
    before, much = saved_bytes(unet, *inputs)
    [want] = torch.autograd.grad(before.square().mean(), hidden)
    names = list(unet.state_dict())
    replace_modules(unet)
    after, less = saved_bytes(unet, *inputs)
    [got] = torch.autograd.grad(after.square().mean(), hidden)
    assert torch.equal(after, before)
    torch.testing.assert_close(got, want)
    assert less < 0.7 * much
    assert sorted(unet.state_dict()) == sorted(names)


@pytest.mark.parametrize("attention", ["blockwise", "sdpa"])
@pytest.mark.parametrize("convolutions", ["winograd", "direct"])
def test_an_optimized_unet_computes_the_same(untrained_model, attention, convolutions):
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval().requires_grad_(False)
    torch.manual_seed(0)
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([10, 900]),
        "encoder_hidden_states": torch.randn(2, 77, 128),
    }
    before = unet(**inputs).sample
    made = []
    optimize_unet(
        unet,
        example_inputs=inputs,
        attention=attention,
        convolution=convolutions,
        map_tensors=lambda make, _: made.append(make()) or made[0],
    )
    assert len(made) == (convolutions == "winograd")
    torch.testing.assert_close(unet(**inputs).sample, before, rtol=1e-4, atol=1e-5)
