"""An embedding layer of a text encoder with frozen vocabulary and a few learned embeddings."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel


class LearnedEmbedding(nn.Module):
    """An embedding layer whose vocabulary is frozen, and whose last tokens are its only parameter.

    The frozen embeddings are not part of the parameter. So nothing has to be restored after a step, the optimizer's
    state is a few kilobytes, and ranks exchange the gradient of the learned embeddings only.
    """

    def __init__(self, frozen: torch.Tensor, first_id: int, initial: torch.Tensor) -> None:
        """Combine a frozen table with learned embeddings.

        Args:
            frozen: [vocabulary, dim] of any type.
            first_id: token id of the first learned embedding.
            initial: [num_vectors, dim]; the learned embeddings start from a float32 copy.
        """
        super().__init__()
        self.register_buffer("frozen", frozen.detach(), persistent=False)
        self.first_id = first_id
        self.learned = nn.Parameter(initial.detach().float().clone())

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table, for code that asks an embedding layer for its type or device."""
        return self.get_buffer("frozen")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up [..., tokens] ids -> [..., tokens, dim] in the frozen table's type."""
        frozen = self.get_buffer("frozen")
        index = ids - self.first_id
        is_learned = (index >= 0) & (index < len(self.learned))
        known = F.embedding(torch.where(is_learned, 0, ids), frozen)
        new = F.embedding(torch.where(is_learned, index, 0), self.learned).to(frozen.dtype)
        return torch.where(is_learned[..., None], new, known)


def install_embedding(text_encoder: CLIPTextModel, ids: list[int], initial_ids: list[int]) -> LearnedEmbedding:
    """Replace the embedding layer of ``text_encoder`` by a :class:`LearnedEmbedding`.

    Args:
        text_encoder: frozen.
        ids: consecutive ids of the learned tokens.
        initial_ids: vocabulary ids whose embeddings they start from.
    """
    frozen = text_encoder.get_input_embeddings().weight
    embedding = LearnedEmbedding(frozen, ids[0], frozen.detach()[initial_ids])
    text_encoder.set_input_embeddings(embedding)
    return embedding
