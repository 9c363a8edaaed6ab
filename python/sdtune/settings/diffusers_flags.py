"""Flags of diffusers' scripts that stand for no setting here: each is refused, or passed over with a warning.

Without them a command that was written for those scripts would fail without a hint, or train something else.
"""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sdtune.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class OtherFlag:
    """A flag of ``train_dreambooth_lora.py`` or ``textual_inversion.py``."""

    why: str
    """Why it has no effect, or what to do instead."""
    refused: bool = False
    """Whether the run would learn something else than was asked for."""
    switch: bool = False
    """Whether it takes no value."""
    same_as: str | None = None
    """The value that asks for what is done here anyway; it is taken without a warning."""


_NO_GPU = "it is for GPUs"
_NO_UPLOAD = "nothing is uploaded; upload the output folder when the run has finished"
OTHER_FLAGS: Mapping[str, OtherFlag] = {
    # --- refused: it would change what is learned
    "num_train_epochs": OtherFlag(
        refused=True,
        why="there are no epochs; give --max_train_steps: epochs x pictures / samples in a step",
    ),
    "save_steps": OtherFlag(refused=True, why="give --checkpointing_steps"),
    "lr_num_cycles": OtherFlag(refused=True, same_as="1", why="cosine_with_restarts has one cycle; leave it out"),
    "lr_power": OtherFlag(refused=True, same_as="1.0", why="the schedule polynomial has the power 1; leave it out"),
    "revision": OtherFlag(refused=True, why="the model is a local folder; put that revision into it"),
    "variant": OtherFlag(refused=True, why="the model is a local folder; put that variant's files into it"),
    "tokenizer_name": OtherFlag(refused=True, why="captions are read by the model's own tokenizer; leave it out"),
    "tokenizer_max_length": OtherFlag(
        refused=True, why="captions are read up to the length of the model's text encoder; leave it out"
    ),
    "text_encoder_use_attention_mask": OtherFlag(
        refused=True, switch=True, why="Stable Diffusion encodes captions without a mask; leave it out"
    ),
    "class_labels_conditioning": OtherFlag(
        refused=True, why="models that are conditioned on class labels cannot be trained here; leave it out"
    ),
    "validation_images": OtherFlag(
        refused=True, why="no model that can be trained here draws from pictures; leave it out"
    ),
    "max_grad_norm": OtherFlag(refused=True, why="gradients are not clipped here; leave it out"),
    # --- passed over with a warning
    "use_8bit_adam": OtherFlag(switch=True, why="AdamW computes in float32; its state is as small as what is learned"),
    "prior_generation_precision": OtherFlag(why="class pictures are drawn in the type of --mixed_precision"),
    "sample_batch_size": OtherFlag(why="class pictures are drawn one by one, in as many processes as there are"),
    "validation_epochs": OtherFlag(why="--validation_prompt is drawn every --validation_prompt_steps steps"),
    "repeats": OtherFlag(why="there are no epochs; --max_train_steps says how long a run is"),
    "gradient_checkpointing": OtherFlag(switch=True, why="what is cheap to compute again is never saved"),
    "pre_compute_text_embeddings": OtherFlag(
        switch=True, why="captions are encoded once anyway, where no text encoder is trained"
    ),
    "dataloader_num_workers": OtherFlag(why="each picture is encoded once, and then read from a cache"),
    "logging_dir": OtherFlag(why="TensorBoard's files are in tensorboard/ in --output_dir"),
    "no_safe_serialization": OtherFlag(switch=True, why="files are written as safetensors"),
    "push_to_hub": OtherFlag(switch=True, why=_NO_UPLOAD),
    "hub_token": OtherFlag(why=_NO_UPLOAD),
    "hub_model_id": OtherFlag(why=_NO_UPLOAD),
    "local_rank": OtherFlag(why="mpirun numbers the ranks"),
    "allow_tf32": OtherFlag(switch=True, why=_NO_GPU),
    "enable_xformers_memory_efficient_attention": OtherFlag(switch=True, why=_NO_GPU),
}
OTHER_DEFAULTS = {"lora": {"rank": "4", "train_batch_size": "4", "learning_rate": "5e-4", "max_train_steps": "1 epoch"}}
"""{program: {flag: default in diffusers' script}}, where ours differs and changes what is learned."""


def add_other_flags(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` know them; ``--help`` leaves them out."""
    for flag, other in OTHER_FLAGS.items():
        if other.switch:
            parser.add_argument(f"--{flag}", action="store_true", default=None, help=argparse.SUPPRESS)
        else:
            parser.add_argument(f"--{flag}", nargs="+" if flag == "validation_images" else None, help=argparse.SUPPRESS)


def other_flag_warnings(flags: argparse.Namespace, method: str, given: Collection[str]) -> list[str]:
    """Warnings of the flags that have no effect, and of defaults that are not those of diffusers' script.

    Args:
        flags: the parsed command line.
        method: of the program.
        given: flags of settings that were typed.

    Raises:
        BadInput: a flag would change what is learned, and is not possible here.
    """
    typed: dict[str, Any] = {flag: getattr(flags, flag) for flag in OTHER_FLAGS if getattr(flags, flag) is not None}
    typed = {flag: value for flag, value in typed.items() if not _is_same(value, OTHER_FLAGS[flag].same_as)}
    if refused := [f"--{flag}: {OTHER_FLAGS[flag].why}" for flag in typed if OTHER_FLAGS[flag].refused]:
        raise BadInput("\n".join(refused))
    differ = {flag: theirs for flag, theirs in OTHER_DEFAULTS.get(method, {}).items() if flag not in given}
    warnings = [f"--{flag} has no effect: {OTHER_FLAGS[flag].why}" for flag in typed]
    if differ:
        told = ", ".join(f"--{flag} ({theirs})" for flag, theirs in differ.items())
        warnings.append(f"not given, and other defaults here than in diffusers' script (its own): {told}")
    return warnings


def _is_same(value: Any, same_as: str | None) -> bool:
    """Whether a number as text is ``same_as``."""
    try:
        return same_as is not None and float(value) == float(same_as)
    except ValueError:
        return False
