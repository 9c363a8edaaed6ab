"""Settings of LoRA adapters."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sdtune.settings.bounds import Between, Ge, Gt, Le
from sdtune.settings.fields import Flag, OnlyFor, Settings

ADAPTED = OnlyFor("lora", "pivotal")
"""Marks a setting of the methods that learn LoRA adapters."""


@dataclass(frozen=True, kw_only=True)
class LoraArgs(Settings):
    """LoRA: learned matrices of low rank beside frozen projections (arXiv 2106.09685)."""

    section: ClassVar[str] = "lora"
    prefix: ClassVar[str] = "training_lora_"

    rank: Annotated[int, Ge(1), Le(100_000), ADAPTED] = 8
    """Rank of the learned matrices; at most the width of every projection that they adapt."""
    alpha: Annotated[float | None, Gt(0), Le(1_000_000), Flag("lora_alpha"), ADAPTED] = None
    """The learned product is multiplied by alpha / rank. Unset: the rank, so by 1."""
    targets: Annotated[Literal["attention", "attention+feed_forward"], Flag("lora_layers"), ADAPTED] = "attention"
    """Projections that are adapted: those of attention to queries, keys, values and output; with
    attention+feed_forward also those of the feed-forward layers."""
    text_encoder: Annotated[bool, Flag("train_text_encoder"), ADAPTED] = False
    """Adapt the text encoder too. If false, each caption is encoded once, and the text encoder leaves memory."""
    dropout: Annotated[float, Between(0, 1, below=True), Flag("lora_dropout"), ADAPTED] = 0.0
    """Share of the inputs of a projection that its adapter does not see, chosen at random for each sample. More than 0
    takes time and memory."""
    learning_rate: Annotated[float, Gt(0), Le(1000), ADAPTED] = 1e-4
    """Learning rate of AdamW for the adapters, before scale_lr and the schedule."""
    token_share: Annotated[float, Between(0, 1), OnlyFor("pivotal")] = 0.5
    """Share of the steps in which the embeddings of the new token learn too; in the others only the adapters do."""
