"""The UNet's attention, in blocks and in the compiled kernel: the same numbers as torch's, forward and backward."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sdtune.errors import BadInput
from sdtune.ops import attention as module
from sdtune.ops import kernels
from sdtune.ops.attention import BlockwiseProcessor, attention, normed_self_attention
from sdtune.ops.kernels import build
from sdtune.ops.unet import optimize_unet, replace_modules


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that a test's sequences are longer than, and not a multiple of."""
    monkeypatch.setattr(module, "BLOCK", 5 * 17 // torch.get_num_threads() + 1)
    monkeypatch.setattr(module, "FEW_KEYS", 4)


def inputs(dtype, n=17, m=17, d=4, heads=2):
    torch.manual_seed(0)
    return [torch.randn(heads, length, d, dtype=dtype).requires_grad_() for length in (n, m, m)]


@pytest.mark.parametrize("m", [17, 6, 3], ids=["self", "cross", "whole-matrix"])
def test_gradients_are_right(small_blocks, m):
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, 0.4), inputs(torch.float64, m=m))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_equals_torchs_attention(dtype, tolerance):
    q, k, v = inputs(dtype, n=1300, m=1300, d=40, heads=2)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*wide)
    ours = attention(q, k, v, 40**-0.5)
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


def test_a_unet_computes_the_same_with_it(untrained_model, small_blocks):
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval()
    torch.manual_seed(0)
    noisy, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 128)
    with torch.no_grad():
        expected = unet(noisy, torch.tensor([10, 900]), hidden).sample
        unet.set_attn_processor(BlockwiseProcessor())
        torch.testing.assert_close(unet(noisy, torch.tensor([10, 900]), hidden).sample, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "heads", "n", "m", "d"),
    [
        (1, 2, 1300, 1300, 40),  # no multiple of anything
        (2, 3, 64, 77, 160),  # cross-attention, with the widest heads of Stable Diffusion 1.5
        (1, 2, 256, 300, 64),
        (3, 1, 1, 1, 8),
        (1, 5, 33, 129, 80),
    ],
)
def test_the_kernel_equals_exact_attention(the_kernel, batch, heads, n, m, d):
    torch.manual_seed(0)
    operands = [torch.randn(batch, length, heads * d).bfloat16().requires_grad_() for length in (n, m, m)]
    exact = [x.detach().double().requires_grad_() for x in operands]
    apart = [x.unflatten(-1, (heads, d)).transpose(1, 2) for x in exact]
    scale = 2 * d**-0.5  # some weights near 1
    expected = F.scaled_dot_product_attention(*apart, scale=scale).transpose(1, 2).flatten(2)
    ours = kernels.attention_forward(*operands, heads, scale)[0]
    direction = torch.randn(batch, n, heads * d).bfloat16()
    pairs = zip(
        (ours, *torch.autograd.grad(ours, operands, direction)),
        (expected, *torch.autograd.grad(expected, exact, direction.double())),
        strict=True,
    )
    for got, want in pairs:
        assert got.dtype == torch.bfloat16
        # one rounding of the weights, one of the result; a gradient that is exactly 0 may come out as rounding left it
        assert (got - want).norm() < 5e-3 * want.norm() + 1e-2 * (want.norm() == 0)


def test_the_kernel_computes_the_same_with_any_number_of_threads(the_kernel):
    torch.manual_seed(0)
    q, k, v, direction = (torch.randn(1, 700, 80).bfloat16() for _ in range(4))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out, log_sums = kernels.attention_forward(q, k, v, 2, 0.2)
            results.append((out, *kernels.attention_backward(q, k, v, out, direction, log_sums, 2, 0.2)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("m", [77, 300])
@pytest.mark.parametrize("offset", [100, -100], ids=["far-above-0", "far-below-0"])
def test_the_kernel_survives_large_logits(the_kernel, m, offset):
    """Padding of a block of keys has logit 0, and must not count, however far from 0 the others are."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, 64).bfloat16().requires_grad_() for length in (90, m, m))
    with torch.no_grad():
        q += 1
        k += offset / 8  # q k^T / 8 is about offset
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*exact)
    ours = kernels.attention_forward(q, k, v, 1, 64**-0.5)[0]
    direction = torch.randn(1, 90, 64).bfloat16()
    gradients = torch.autograd.grad(ours, (q, k, v), direction)
    wanted = torch.autograd.grad(expected, exact, direction.double())
    assert (ours - expected).norm() < 1e-2 * expected.norm()
    for got, want in zip(gradients, wanted, strict=True):
        assert (got - want).norm() < 2e-2 * want.norm()


def test_the_kernel_takes_tensors_as_they_lie(the_kernel):
    torch.manual_seed(0)
    plain = [torch.randn(2, 40, 48).bfloat16() for _ in range(3)]
    views = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in plain]
    plain = [x.requires_grad_() for x in plain]
    results = []
    for operands in (plain, views):
        out = kernels.attention_forward(*operands, 3, 0.25)[0]
        results.append([out, *torch.autograd.grad(out.float().sum(), operands)])  # an expanded gradient
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_operands_that_do_not_fit_are_refused():
    q, k = torch.zeros(1, 4, 8, dtype=torch.bfloat16), torch.zeros(1, 5, 8, dtype=torch.bfloat16)
    for operands, heads, why in (
        ((q.float(), k, k), 1, "bf16"),
        ((q, k, k[:, 1:]), 1, "do not fit together"),
        ((q, k[..., 1:], k[..., 1:]), 1, "do not fit together"),
        ((q, k, k), 3, "no 3 heads"),
        ((q[:, :0], k, k), 1, "an empty tensor"),
    ):
        with pytest.raises(ValueError, match=why):
            kernels.attention_forward(*operands, heads, 1.0)
    with pytest.raises(ValueError, match="log_sums of another pass"):
        kernels.attention_backward(q, k, k, q, q, torch.zeros(1, 3), 1, 1.0)


def test_the_kernel_is_an_operator_of_torch(the_kernel):
    """Schema, shapes without data, and gradients, also traced."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, 48).bfloat16().requires_grad_() for length in (40, 48, 48))
    torch.library.opcheck(torch.ops.sdtune.attention_forward, (q, k, v, 3, 0.25))
    with torch.no_grad():
        out, log_sums = kernels.attention_forward(q, k, v, 3, 0.25)
        torch.library.opcheck(torch.ops.sdtune.attention_backward, (q, k, v, out, out, log_sums, 3, 0.25))


def test_a_learned_projection_gets_its_gradient(the_kernel):
    """Recomputed projections have none, so they are for frozen ones only."""
    block = BasicTransformerBlock(48, 3, 16, cross_attention_dim=24, activation_fn="geglu")
    block = nn.Sequential(block.bfloat16().requires_grad_(False))
    block[0].attn1.to_q.weight.requires_grad_(True)
    replace_modules(block, kernel=True)
    x, context = torch.randn(1, 20, 48).bfloat16(), torch.randn(1, 7, 24).bfloat16()
    block[0](x, encoder_hidden_states=context).float().square().sum().backward()
    assert block[0].attn1.to_q.weight.grad.norm() > 0


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_kernel_with_normalization_and_projections_of_its_input(the_kernel, with_bias):
    torch.manual_seed(0)
    exact = Attention(48, heads=3, dim_head=16, bias=with_bias, out_bias=True).double().requires_grad_(False)
    norm = nn.LayerNorm(48).double().requires_grad_(False)
    norm.weight += 0.1 * torch.randn(48)
    norm.bias += 0.1 * torch.randn(48)
    ours, our_norm = copy.deepcopy(exact).bfloat16(), copy.deepcopy(norm).bfloat16()
    exact.load_state_dict(ours.state_dict())
    norm.load_state_dict(our_norm.state_dict())
    x = torch.randn(2, 150, 48).bfloat16().requires_grad_()
    wide = x.detach().double().requires_grad_()
    direction = torch.randn(2, 150, 48).bfloat16()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        got = normed_self_attention(x, our_norm, ours)
    want = F.scaled_dot_product_attention(
        *(linear(norm(wide)).unflatten(2, (3, 16)).transpose(1, 2) for linear in (exact.to_q, exact.to_k, exact.to_v))
    )
    want = want.transpose(1, 2).flatten(2)
    assert sum(saved) < 3 * x.nbytes  # the input, the result and sums, instead of norm(x), q, k and v
    assert (got - want).norm() < 1e-2 * want.norm()
    (got,), (want,) = torch.autograd.grad(got, x, direction), torch.autograd.grad(want, wide, direction.double())
    assert (got - want).norm() < 1e-2 * want.norm()


def test_the_kernel_hands_on_a_nan(the_kernel):
    q, k, v = (torch.randn(1, 64, 40).bfloat16() for _ in range(3))
    q[0, 3, 0] = torch.nan
    out, _ = kernels.attention_forward(q, k, v, 1, 1.0)
    assert out[0, 3].isnan().all()
    assert out[0, 4:].isfinite().all()


def test_a_unet_computes_the_same_with_the_kernel(the_kernel, untrained_model):
    unet = UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval().bfloat16()
    torch.manual_seed(0)
    noisy, hidden = torch.randn(2, 4, 8, 8).bfloat16(), torch.randn(2, 77, 128).bfloat16()
    with torch.no_grad():
        exact = unet.float()(noisy.float(), torch.tensor([10, 900]), hidden.float()).sample
        unet.bfloat16()
        theirs = unet(noisy, torch.tensor([10, 900]), hidden).sample
        unet.set_attn_processor(BlockwiseProcessor(kernel=True))
        ours = unet(noisy, torch.tensor([10, 900]), hidden).sample
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


class Operators(TorchDispatchMode):
    """Records the names of the operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "used"), [(torch.bfloat16, True), (torch.float32, False)])
def test_an_optimized_unet_takes_the_kernel_in_bf16(the_kernel, untrained_model, dtype, used):
    unet = (
        UNet2DConditionModel.from_pretrained(untrained_model, subfolder="unet").eval().requires_grad_(False).to(dtype)
    )
    inputs = {
        "sample": torch.randn(1, 4, 8, 8, dtype=dtype),
        "timestep": torch.tensor([10]),
        "encoder_hidden_states": torch.randn(1, 77, 128, dtype=dtype),
    }
    optimize_unet(unet, example_inputs=inputs, attention="blockwise", convolution="direct")
    with Operators() as operators:
        unet(**inputs)
    assert any(name.startswith("sdtune.attention_forward") for name in operators.names) == used


def test_kernels_of_another_source_are_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "instruction_set", lambda: "AMX")
    monkeypatch.setattr(kernels, "library", lambda _: tmp_path / "attention-0.so")
    kernels._load.cache_clear()
    try:
        with pytest.raises(BadInput, match=r"attention-0\.so is not there: the kernels were not compiled"):
            BlockwiseProcessor(kernel=True)
    finally:
        kernels._load.cache_clear()


def test_a_processor_without_kernels_is_told(monkeypatch):
    monkeypatch.setattr(kernels, "instruction_set", lambda: "AVX2")
    kernels._load.cache_clear()
    with pytest.raises(BadInput, match="for AMX and AVX-512-BF16, not for this processor, which has AVX2"):
        BlockwiseProcessor(kernel=True)


def test_the_compiler_is_the_pinned_one():
    lock = Path(__file__).parents[2] / "requirements.txt"
    assert f"ziglang=={build.VERSION} " in lock.read_text()


def test_a_folder_that_cannot_be_written_is_told_before(tmp_path, monkeypatch):
    """As that of a collection that root installed for all users."""
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(build.os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    assert build.obstacle().startswith(f"{tmp_path}, where they go, cannot be written by this user; install")


def test_without_a_compiler_it_says_what_to_install(tmp_path):
    """This environment is a host's, and has none."""
    for name in ("build.py", *(source.name for source in build.SOURCES), *build.HEADERS):
        shutil.copy(Path(build.__file__).with_name(name), tmp_path)
    done = subprocess.run([sys.executable, tmp_path / "build.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    why = "the compiler, ziglang, does not start: "
    assert f"error: the kernels were not compiled: {why}" in done.stderr
    assert f"No module named ziglang; type {sys.executable} -m pip install ziglang=={build.VERSION}\n" in done.stderr
    assert not list(tmp_path.glob("*.so"))
