"""Operations that keep less: the same numbers, fewer bytes."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from sdtune.frozen_ops import use_frozen_ops


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 6)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (1, 4, 7, 5)),
        (nn.Conv2d(3, 2, 1), (1, 3, 4, 4)),
        (GEGLU(6, 4), (2, 3, 6)),
    ],
    ids=["conv", "strided-groups", "1x1", "geglu"],
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


@pytest.mark.parametrize("size", [(16, 16), (17, 20), (3, 5)], ids=["square", "odd", "small"])
def test_a_doubled_image_is_convolved_as_if_it_had_been_doubled(size):
    torch.manual_seed(0)
    up = Upsample2D(3, use_conv=True, out_channels=4).double().requires_grad_(False)
    plain = copy.deepcopy(up)
    use_frozen_ops(up)
    assert type(up) is not type(plain)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(up(x), plain(x))
    direction = torch.randn(2, 4, 2 * size[0], 2 * size[1], dtype=torch.float64)
    [got], [want] = (torch.autograd.grad(f(x), x, direction) for f in (up, plain))
    torch.testing.assert_close(got, want)


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
