"""Blocks of a diffusers UNet that save less for the backward pass. Parameters keep their names.

A block replaces diffusers' own where a normalization and what follows it are computed together: the normalized tensor
is then never the output of a module, so nothing saves it.
"""

import functools
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdtune.ops.attention import can_fuse, normed_self_attention
from sdtune.ops.low_rank import AdaptedLinear, is_fusable
from sdtune.ops.normalization import FrozenGroupNorm, norm_gated_gelu


class FrozenResnetBlock(nn.Module):
    """A residual block that recomputes its normalizations in the backward pass.

    Args:
        block: what it replaces, see :meth:`can_replace`.
    """

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.time_emb_proj, self.conv_shortcut = block.time_emb_proj, block.conv_shortcut
        self.nonlinearity, self.dropout = block.nonlinearity, block.dropout
        self.skip_time_act, self.output_scale_factor = block.skip_time_act, block.output_scale_factor
        self.train(block.training)

    @staticmethod
    def can_replace(module: Any) -> bool:
        """Whether ``module`` is a residual block in which SiLU follows each normalization directly."""
        return (
            type(module) is ResnetBlock2D
            and isinstance(module.nonlinearity, nn.SiLU)
            and module.time_embedding_norm == "default"
            and module.upsample is None
            and module.downsample is None
        )

    def _normalize(self, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """silu(norm(x)). Saves x only, which is 65 MB less in a step of Stable Diffusion 1.5."""
        if isinstance(norm, FrozenGroupNorm) and x.dtype is torch.bfloat16:
            return norm(x, silu=True)  # type: ignore[no-any-return]
        normalized: torch.Tensor = checkpoint(
            lambda x: self.nonlinearity(norm(x)), x, use_reentrant=False, preserve_rng_state=False
        )
        return normalized

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
        """[b, in, h, w] and an embedding of the timestep, [b, dim] -> [b, out, h, w]."""
        hidden: torch.Tensor = self.conv1(self._normalize(self.norm1, input_tensor))
        if self.time_emb_proj is not None:
            temb = temb if self.skip_time_act else self.nonlinearity(temb)
            temb = self.time_emb_proj(temb)[:, :, None, None]
        if temb is not None:
            hidden = hidden + temb
        hidden = self.conv2(self.dropout(self._normalize(self.norm2, hidden)))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        hidden = input_tensor + hidden
        return hidden if self.output_scale_factor == 1 else hidden / self.output_scale_factor


class FrozenTransformerBlock(nn.Module):
    """A transformer block whose last normalization and gated GELU are one operation.

    Args:
        block: what it replaces, see :meth:`can_replace`.
        kernel: let the compiled kernels do the gated GELU in bf16.
    """

    def __init__(self, block: BasicTransformerBlock, *, kernel: bool = False) -> None:
        super().__init__()
        self._kernel = kernel
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff
        self.train(block.training)

    @staticmethod
    def can_replace(module: Any) -> bool:
        """Whether ``module`` is attention, cross-attention and a gated GELU, each after a layer normalization."""
        return (
            type(module) is BasicTransformerBlock
            and module.norm_type == "layer_norm"
            and not module.only_cross_attention
            and module.pos_embed is None
            and module._chunk_size is None
            and not hasattr(module, "fuser")
            and type(module.norm3) is nn.LayerNorm
            and type(module.ff.net[0]) is GEGLU
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[b, n, channels] -> the same shape. The arguments are those of the block that it replaces."""
        options = cross_attention_kwargs or {}
        bf16 = hidden_states.dtype is torch.bfloat16
        fused = self._kernel and bf16 and attention_mask is None and can_fuse(self.attn1)
        if fused:
            attended = normed_self_attention(hidden_states, self.norm1, self.attn1)
        else:
            attended = self.attn1(self.norm1(hidden_states), attention_mask=attention_mask, **options)
        gated, *rest = self.ff.net
        # Adapters save the inputs of their projections. Everything but self-attention is recomputed then, so a block
        # holds its input and what was attended: 140 MB less at 512 pixels and a batch of 1, for 5% more FLOPs.
        recomputed = isinstance(self.attn1.to_out[0], AdaptedLinear)
        again = False

        def after(
            attended: torch.Tensor, x: torch.Tensor, context: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """From the result of self-attention to that of cross-attention, and to the gated GELU's."""
            nonlocal again
            x = (self.attn1.to_out[0](attended) if fused else attended) + x
            if self.attn2 is not None:
                mixed = self.attn2(
                    self.norm2(x), encoder_hidden_states=context, attention_mask=encoder_attention_mask, **options
                )
                x = mixed + x
            if not is_fusable(gated.proj):
                return x, gated(self.norm3(x))
            widened = norm_gated_gelu(
                x, self.norm3, gated.proj, kernel=self._kernel, recompute=recomputed, only_save=again
            )
            again = recomputed
            return x, widened

        if recomputed:
            after = functools.partial(checkpoint, after, use_reentrant=False, preserve_rng_state=False)
        hidden_states, widened = after(attended, hidden_states, encoder_hidden_states)
        for module in rest:
            widened = module(widened)
        return widened + hidden_states
