"""Adapters beside frozen operations: the numbers and gradients of peft's own layers, and no more memory."""

import copy

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sdtune.methods.adapters import add_adapters
from sdtune.ops import kernels, normalization
from sdtune.ops.attention import BlockwiseProcessor
from sdtune.ops.low_rank import AdaptedLinear, Dropout, adapted_projection
from sdtune.ops.unet import replace_modules
from sdtune.settings import LoraArgs

NO_DROPOUT = Dropout(1, 0.0)
SETTINGS = LoraArgs(rank=4, alpha=6.0, targets="attention+feed_forward")


def block_with_adapters(dtype, kernel=False):
    """A frozen transformer block in a network with peft's own adapters, and the same with ours on fused operations."""
    torch.manual_seed(0)
    base = BasicTransformerBlock(64, 2, 32, cross_attention_dim=24, activation_fn="geglu").to(dtype)
    plain, ours = (nn.Sequential(copy.deepcopy(base)).requires_grad_(False).eval() for _ in range(2))
    replace_modules(ours, kernel=kernel)
    adapters = add_adapters(ours, SETTINGS, "denoiser", 1, NO_DROPOUT)
    names = [adapter.module for adapter in adapters]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6.0, target_modules=names), plain)
    for adapter in adapters:
        adapter.b.data = 0.1 * torch.randn(adapter.b.shape)
        layer = plain.get_submodule(adapter.module)
        layer.lora_A["default"].weight.data = adapter.a.detach().clone()
        layer.lora_B["default"].weight.data = adapter.b.detach().clone()
    return plain[0], ours[0], adapters, plain


def test_gradients_are_right():
    class Layer(AdaptedLinear):
        def __init__(self):
            super().__init__()
            self.dropout, self.number = NO_DROPOUT, 0
            self.base_layer = nn.Linear(5, 7).double().requires_grad_(False)
            self.a, self.b = (nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in ((2, 5), (7, 2)))

        def factors(self):
            return self.a, self.b, 1.5

    torch.manual_seed(0)
    layer = Layer()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def use(x, a, b):
        return adapted_projection(x, layer)

    torch.testing.assert_close(use(x, 0, 0), layer.base_layer(x) + 1.5 * x @ layer.a.t() @ layer.b.t())
    assert torch.autograd.gradcheck(use, (x, layer.a, layer.b))


@pytest.mark.parametrize(
    "kernel", [False, pytest.param(True, marks=pytest.mark.skipif(not kernels.usable(), reason="no kernel"))]
)
@pytest.mark.parametrize("input_learns", [True, False])
def test_a_block_with_adapters_computes_what_peft_computes(kernel, input_learns):
    """Forward, the gradient of the input, and those of all ten adapters."""
    dtype = torch.bfloat16 if kernel else torch.float32
    plain, ours, adapters, network = block_with_adapters(dtype, kernel)
    for attention in (ours.attn1, ours.attn2):
        attention.set_processor(BlockwiseProcessor(kernel=kernel))
    assert len(adapters) == 10
    hidden, context = torch.randn(2, 48, 64).to(dtype), torch.randn(2, 7, 24).to(dtype)
    weights = torch.randn(2, 48, 64)

    def gradients(block, autocast):
        x = hidden.clone().requires_grad_(input_learns)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = block(x, encoder_hidden_states=context)
        (out.float() * weights).sum().backward()
        return out.detach().float(), x.grad

    (out, d_x), (expected, expected_d_x) = gradients(ours, False), gradients(plain, kernel)
    limits = {"rtol": 0.1, "atol": 0.1} if kernel else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(out, expected, **limits)
    if input_learns:
        torch.testing.assert_close(d_x, expected_d_x, **limits)
    for adapter in adapters:
        layer = network.get_submodule(adapter.module)
        for own, theirs in ((adapter.a, layer.lora_A["default"].weight), (adapter.b, layer.lora_B["default"].weight)):
            assert own.grad.dtype == torch.float32
            assert (own.grad - theirs.grad).norm() < (0.03 if kernel else 1e-5) * theirs.grad.norm(), adapter.module


def bytes_held(block, x, context):
    """What a pass holds for the backward pass beside the parameters; each tensor once."""
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # alive, so that no other has its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(x, encoder_hidden_states=context)
    return sum(storage.nbytes() for address, storage in held.items() if address not in weights), out


@pytest.mark.skipif(not kernels.usable(), reason="no kernel")
def test_a_block_with_adapters_on_its_attention_holds_two_tensors(monkeypatch):
    """Its input, and the result of self-attention with its sums; the context is there anyway."""
    monkeypatch.setattr(normalization, "RECOMPUTED_CHANNELS", 0)  # as where there are more channels
    torch.manual_seed(0)
    base = BasicTransformerBlock(64, 2, 32, cross_attention_dim=24, activation_fn="geglu").bfloat16()
    network = nn.Sequential(base).requires_grad_(False).eval()
    replace_modules(network, kernel=True)
    network[0].attn1.set_processor(BlockwiseProcessor(kernel=True))
    network[0].attn2.set_processor(BlockwiseProcessor(kernel=True))
    add_adapters(network, LoraArgs(), "denoiser", 1, NO_DROPOUT)
    x = torch.randn(2, 320, 64).bfloat16().requires_grad_()
    context = torch.randn(2, 7, 24).bfloat16()
    held, out = bytes_held(network[0], x, context)
    sums = 4 * 2 * 2 * 320  # float32, for each head and position
    assert held == 2 * x.nbytes + sums + context.nbytes
    out.float().square().sum().backward()
    assert x.grad.isfinite().all()


def test_an_adapter_starts_without_effect_and_the_same_everywhere():
    """Only the seed decides: not the type of the network, nor torch's own random state."""
    torch.manual_seed(0)
    base = nn.Sequential(BasicTransformerBlock(64, 2, 32, cross_attention_dim=24, activation_fn="geglu"))
    base.requires_grad_(False)
    x, context = torch.randn(1, 5, 64), torch.randn(1, 3, 24)
    before = base[0](x, encoder_hidden_states=context)
    starts = []
    for state, dtype in ((3, torch.float32), (4, torch.bfloat16)):
        torch.manual_seed(state)
        network = copy.deepcopy(base).to(dtype)
        adapters = add_adapters(network, LoraArgs(), "denoiser", 7, NO_DROPOUT)
        assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
        starts.append(torch.cat([adapter.a.detach().flatten() for adapter in adapters]))
        if dtype == torch.float32:
            assert torch.equal(network[0](x, encoder_hidden_states=context), before)
    assert len(adapters) == 8
    assert torch.equal(*starts)
    assert starts[0].std().item() == pytest.approx(1 / 8, rel=0.05)
