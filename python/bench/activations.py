"""What a training step holds for its backward pass, by blocks of the UNet, for one sample.

    python bench/activations.py [--model FOLDER] [--resolution 512 768 1024] [--method textual_inversion lora]

Without a model, the shapes of Stable Diffusion XL. Everything is on the meta device: nothing is computed, and the sizes
are exact. For each kind of block: how many there are, what they hold, and what each would hold if all of it were
recomputed, which is its input. The engine recomputes what is cheap already, see ``sdtune/ops``.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import inject_adapter_in_model
from sdxl import UNET
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdtune.methods.adapters import _layer_class, config
from sdtune.models.registry import FAMILIES
from sdtune.ops.attention import BlockwiseProcessor
from sdtune.ops.blocks import FrozenResnetBlock, FrozenTransformerBlock
from sdtune.ops.low_rank import AdaptedLinear, Dropout
from sdtune.ops.unet import replace_modules
from sdtune.settings import LoraArgs

METHODS = ("textual_inversion", "lora")


@dataclass
class Held:
    """What blocks of one kind hold."""

    blocks: int = 0
    """How many there are."""
    held: int = 0
    """Bytes of all of them."""


Kind = tuple[str, int, int]
"""A block's type, channels and positions."""
ELSEWHERE: Kind = ("other", 0, 0)


def make_unet(configuration: dict[str, Any], method: str, rank: int = 8) -> UNet2DConditionModel:
    """A UNet on the meta device as training has it, in bf16 with the compiled kernel."""
    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(configuration).bfloat16()
        unet.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        replace_modules(unet, kernel=True)
        processor = BlockwiseProcessor()
        processor._kernel = True  # no kernel runs on the meta device, and none has to be compiled
        unet.set_attn_processor(processor)
        if method == "lora":
            adapters = config(LoraArgs(rank=rank), "denoiser")
            adapters._register_custom_module({nn.Linear: _layer_class()})
            inject_adapter_in_model(adapters, unet)
            for layer in (m for m in unet.modules() if isinstance(m, AdaptedLinear)):
                layer.dropout = Dropout(seed=1, share=0.0)
    return unet


def example(unet: UNet2DConditionModel, resolution: int, method: str) -> dict[str, Any]:
    """The arguments of a call for one picture; with textual inversion, gradients go to the captions."""
    family = next(f for f in FAMILIES if (f.name == "sdxl") == (unet.config.addition_embed_type == "text_time"))
    side = resolution // 8
    conditions = family.example_conditioning(unet)
    width = conditions["encoder_hidden_states"].shape[-1]
    hidden = torch.empty(1, 77, width, dtype=torch.bfloat16, device="meta")
    return {
        "sample": torch.empty(1, 4, side, side, dtype=torch.bfloat16, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        **conditions,
        "encoder_hidden_states": hidden.requires_grad_(method != "lora"),
    }


@contextmanager
def kinds_of(unet: nn.Module, found: dict[Kind, Held]) -> Iterator[list[Kind]]:
    """The kind of the block that is being computed, last in a list; counts the blocks."""
    stack: list[Kind] = [ELSEWHERE]
    hooks = []

    def enter(block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        is_image = isinstance(block, FrozenResnetBlock)
        channels, positions = (x.shape[1], x[0, 0].numel()) if is_image else (x.shape[-1], x.shape[1])
        stack.append((type(block).__name__.removeprefix("Frozen"), channels, positions))
        found.setdefault(stack[-1], Held()).blocks += 1

    def leave(*_: Any) -> None:  # what a hook returns would replace the output
        stack.pop()

    for block in unet.modules():
        if isinstance(block, FrozenResnetBlock | FrozenTransformerBlock):
            hooks += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


def measure(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> dict[Kind, Held]:
    """What each kind of block holds between the passes. A tensor that two blocks hold counts for the first."""
    found: dict[Kind, Held] = {ELSEWHERE: Held()}
    weights = {p.untyped_storage()._cdata for p in (*unet.parameters(), *unet.buffers())}
    saved: dict[int, tuple[Kind, StorageWeakRef, int]] = {}

    with kinds_of(unet, found) as stack:

        def pack(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in weights:
                saved.setdefault(storage._cdata, (stack[-1], StorageWeakRef(storage), storage.nbytes()))
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = unet(**inputs).sample
    for kind, reference, size in saved.values():
        if not reference.expired():  # where nothing is learned further up, it was saved in vain, and is gone
            found[kind].held += size
    del out
    return found


def report(found: dict[Kind, Held], resolution: int, method: str) -> None:
    """One table."""
    print(f"\n{method}, {resolution} px: {sum(held.held for held in found.values()) / 1e9:.2f} GB a sample in bf16")
    print(f"  {'block':24}{'channels':>9}{'positions':>11}{'blocks':>8}{'MB each':>9}{'MB':>8}{'MB recomputed':>15}")
    for (name, channels, positions), held in sorted(found.items(), key=lambda item: -item[1].held):
        each = f"{held.held / held.blocks / 1e6:.1f}" if held.blocks else ""
        recomputed = f"{2 * channels * positions * held.blocks / 1e6:.0f}" if held.blocks else ""
        print(
            f"  {name:24}{channels or '':>9}{positions or '':>11}{held.blocks or '':>8}{each:>9}"
            f"{held.held / 1e6:>8.0f}{recomputed:>15}"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="pipeline folder (default: the shapes of Stable Diffusion XL)")
    parser.add_argument("--resolution", type=int, nargs="+", default=[512, 768, 1024], help="default 512 768 1024")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS, dest="methods", help="default both")
    args = parser.parse_args()
    configuration = UNET
    if args.model:
        configuration = json.loads((args.model / "unet" / "config.json").read_text(encoding="utf-8"))
    for method in args.methods:
        unet = make_unet(configuration, method)
        for resolution in args.resolution:
            report(measure(unet, example(unet, resolution, method)), resolution, method)


if __name__ == "__main__":
    main()
