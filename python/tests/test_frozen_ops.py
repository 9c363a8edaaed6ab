"""Operations that keep less: the same numbers, fewer bytes."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from sdtune.ops import frozen_ops
from sdtune.ops.frozen_ops import use_frozen_ops, use_winograd, winograd_kernels

TOYWORLD = Path(__file__).parents[2] / "toyworld" / "model"


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
    module = module.double().requires_grad_(False)
    plain = copy.deepcopy(module)
    use_frozen_ops(module)
    assert type(module) is not type(plain)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(module(x), plain(x))
    assert torch.autograd.gradcheck(module, x)


def test_gradients_of_a_residual_block_are_right():
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=4, out_channels=6, temb_channels=5, groups=2).double().requires_grad_(False)
    plain = copy.deepcopy(block)
    use_frozen_ops(block)
    inputs = (torch.randn(2, 4, 5, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64))
    torch.testing.assert_close(block(*inputs), plain(*inputs))
    assert torch.autograd.gradcheck(block, tuple(x.requires_grad_() for x in inputs))


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_small_convolution_with_large_kernels_is_one_product(monkeypatch, with_bias):
    monkeypatch.setattr(frozen_ops, "LARGE_KERNELS", 1)
    torch.manual_seed(0)
    module = nn.Conv2d(3, 5, 3, padding=1, bias=with_bias).double().requires_grad_(False)
    module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(module)
    use_frozen_ops(module)
    monkeypatch.setattr(frozen_ops, "_Convolution", None)  # the other way does not work any more
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(module(x), plain(x))
    assert torch.autograd.gradcheck(module, x)


@pytest.mark.parametrize("widest", [5, 6], ids=["kept", "made-again"])
def test_gradients_of_a_gated_gelu_are_right(monkeypatch, widest):
    """With the normalization before it, in blocks that do not come out even."""
    monkeypatch.setattr(frozen_ops, "ROWS", 4)
    monkeypatch.setattr(frozen_ops, "RECOMPUTED_CHANNELS", widest)
    torch.manual_seed(0)
    block = BasicTransformerBlock(6, num_attention_heads=1, attention_head_dim=6).double().requires_grad_(False)
    torch.nn.init.normal_(block.norm3.weight)
    torch.nn.init.normal_(block.norm3.bias)
    plain = copy.deepcopy(block)
    use_frozen_ops(block)
    assert block.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(block(x), plain(x))
    feed_forward = torch.nn.Sequential(block.norm3, *block.ff.net)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        feed_forward(x)
    assert (2, 3, 6) in kept
    assert ((4, 48) in kept) == (widest == 5)
    assert torch.autograd.gradcheck(feed_forward, x)


def test_convolutions_for_winograd_are_those_over_large_images(untrained_model):
    """The embedded model's UNet has two levels; its first and last convolutions have too few channels."""
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval().requires_grad_(False)
    use_frozen_ops(unet)
    sizes = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o, name=name: sizes.update({name: i[0].shape[2]}))
    inputs = (torch.randn(1, 4, 32, 32), torch.tensor([10]), torch.randn(1, 77, 128))
    unet(*inputs)
    wanted = {
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Conv2d) and frozen_ops.is_3x3(module) and sizes[name] == 32
        if name not in ("conv_in", "conv_out", "up_blocks.0.upsamplers.0.conv")
    }
    kernels = winograd_kernels(unet, 32, pixels=32 * 32)
    assert {name for name, tensor in kernels.items() if len(tensor) == 4} == wanted
    assert {name for name, tensor in kernels.items() if len(tensor) == 3} == {"up_blocks.0.upsamplers.0.conv"}
    before = unet(*inputs).sample
    use_winograd(unet, kernels)
    torch.testing.assert_close(unet(*inputs).sample, before, rtol=1e-4, atol=1e-5)


def test_winograd_in_bf16_costs_a_trained_unet_little():
    """Errors of prediction and gradient against float32: the direct sum's in bf16, and not twice of that."""
    torch.manual_seed(0)
    noisy, times = torch.randn(4, 4, 8, 8), torch.tensor([10, 300, 600, 900])
    hidden, direction = torch.randn(4, 77, 128), torch.randn(4, 4, 8, 8)

    def run(dtype, pixels=None):
        unet = UNet2DConditionModel.from_pretrained(TOYWORLD, subfolder="unet", torch_dtype=dtype).eval()
        unet.requires_grad_(False).to(memory_format=torch.channels_last)
        use_frozen_ops(unet)
        if pixels:
            use_winograd(unet, winograd_kernels(unet, 8, pixels))
        text = hidden.to(dtype).requires_grad_()
        out = unet(noisy.to(dtype), times, text).sample
        [gradient] = torch.autograd.grad(out, text, direction.to(dtype))
        return out.detach().float(), gradient.float()

    exact, direct, ours = run(torch.float32), run(torch.bfloat16), run(torch.bfloat16, pixels=16)
    for want, theirs, got in zip(exact, direct, ours, strict=True):
        assert 0 < (got - want).norm() < 1.6 * (theirs - want).norm()


def kept_bytes(network, *inputs):
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


def test_a_unet_keeps_less_and_computes_the_same(untrained_model):
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval().requires_grad_(False)
    torch.manual_seed(0)
    noisy, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 128, requires_grad=True)
    inputs = (noisy, torch.tensor([10, 900]), hidden)
    before, much = kept_bytes(unet, *inputs)
    [want] = torch.autograd.grad(before.square().mean(), hidden)
    names = list(unet.state_dict())
    use_frozen_ops(unet)
    after, less = kept_bytes(unet, *inputs)
    [got] = torch.autograd.grad(after.square().mean(), hidden)
    assert torch.equal(after, before)
    torch.testing.assert_close(got, want)
    assert less < 0.7 * much
    assert list(unet.state_dict()) == names
