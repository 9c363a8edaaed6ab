"""The learned word: its tokens, its rows, and how they stand beside the frozen vocabulary."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizerFast

from sdtune.errors import BadInput


def token_names(placeholder: str, num_vectors: int) -> list[str]:
    """The tokens of a word of several vectors, named as diffusers' ``load_textual_inversion`` names them."""
    return [placeholder, *(f"{placeholder}_{i}" for i in range(1, num_vectors))]


def expand_placeholder(text: str, placeholder: str, num_vectors: int) -> str:
    """``text`` with the word replaced by all of its tokens."""
    return text.replace(placeholder, " ".join(token_names(placeholder, num_vectors)))


def initializer_ids(tokenizer: CLIPTokenizerFast, initializer: str, num_vectors: int) -> list[int]:
    """One vocabulary id for each vector.

    Raises:
        BadInput: the initializer is neither one token nor ``num_vectors`` tokens.
    """
    ids: list[int] = tokenizer.encode(initializer, add_special_tokens=False)
    if len(ids) == 1:
        return ids * num_vectors
    if len(ids) == num_vectors and ids:
        return ids
    tokens = " ".join(tokenizer.convert_ids_to_tokens(ids))
    raise BadInput(
        f"data.initializer_token: {initializer!r} is {len(ids)} tokens for this model ({tokens}); "
        f"choose a word of one token" + (f", or of {num_vectors}" if num_vectors > 1 else "")
    )


def add_placeholder(tokenizer: CLIPTokenizerFast, placeholder: str, num_vectors: int) -> list[int]:
    """Add the word's tokens to ``tokenizer`` and return their ids, which follow one another.

    Raises:
        BadInput: a token is in the vocabulary already.
    """
    names = token_names(placeholder, num_vectors)
    for name in names:
        # a whole word is stored with a mark of its end, so the vocabulary's keys alone do not tell
        if name in tokenizer.get_vocab() or len(tokenizer.encode(name, add_special_tokens=False)) == 1:
            raise BadInput(
                f"data.placeholder_token: {name!r} is in the model's vocabulary; choose another, like <{name}>"
            )
    tokenizer.add_tokens(names)
    ids: list[int] = tokenizer.convert_tokens_to_ids(names)
    return ids


class LearnedEmbedding(nn.Module):
    """An embedding table whose vocabulary is frozen and whose last words are the only parameter.

    The frozen rows are not part of the parameter, so nothing has to be restored after a step, the optimizer's state is
    kilobytes, and what the ranks exchange is the gradient of ``rows`` alone.
    """

    def __init__(self, frozen: torch.Tensor, first_id: int, rows: torch.Tensor) -> None:
        """``frozen`` [vocabulary, dim] of any type; ``rows`` [num_vectors, dim] become a float32 parameter."""
        super().__init__()
        self.register_buffer("frozen", frozen.detach(), persistent=False)
        self.first_id = first_id
        self.rows = nn.Parameter(rows.detach().float().clone())

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table, for code that asks an embedding for its type or device."""
        return self.get_buffer("frozen")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[..., tokens] ids -> [..., tokens, dim] in the frozen table's type."""
        frozen = self.get_buffer("frozen")
        own = ids - self.first_id
        learned = (own >= 0) & (own < len(self.rows))
        known = F.embedding(torch.where(learned, 0, ids), frozen)
        new = F.embedding(torch.where(learned, own, 0), self.rows).to(frozen.dtype)
        return torch.where(learned[..., None], new, known)


def install(text_encoder: CLIPTextModel, ids: list[int], start: list[int]) -> LearnedEmbedding:
    """Put a :class:`LearnedEmbedding` for token ``ids``, starting from the rows of ``start``, into the text encoder."""
    frozen = text_encoder.get_input_embeddings().weight
    embedding = LearnedEmbedding(frozen, ids[0], frozen.detach()[start])
    text_encoder.set_input_embeddings(embedding)
    return embedding
