"""The placeholder token of textual inversion: its name in captions, and its ids in a tokenizer.

A placeholder of several vectors is several tokens. This module does not import torch.
"""

import re
from typing import Any

from sdtune.errors import BadInput


def token_names(placeholder: str, num_vectors: int) -> list[str]:
    """Tokens of a placeholder of ``num_vectors`` vectors, named as in diffusers' ``load_textual_inversion``."""
    return [placeholder, *(f"{placeholder}_{i}" for i in range(1, num_vectors))]


def word_of(placeholder: str) -> str:
    """The placeholder without angle brackets, as a file's name: what tools call an embedding in prompts."""
    return re.sub(r"[^\w.-]", "_", placeholder.strip("<>")) or "embedding"


def expand_placeholder(text: str, placeholder: str, num_vectors: int) -> str:
    """``text`` with the placeholder replaced by all of its tokens."""
    return text.replace(placeholder, " ".join(token_names(placeholder, num_vectors)))


def initializer_ids(tokenizer: Any, initializer: str, num_vectors: int) -> list[int]:
    """Vocabulary ids whose embeddings the learned ones start from, one for each vector.

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


def add_placeholder(tokenizer: Any, placeholder: str, num_vectors: int) -> list[int]:
    """Add the placeholder's tokens to ``tokenizer``.

    Returns:
        Their ids, which are consecutive.

    Raises:
        BadInput: a token is in the vocabulary already.
    """
    names = token_names(placeholder, num_vectors)
    for name in names:
        # CLIP stores a whole word with an end-of-word suffix, so a look-up by name is not enough
        if name in tokenizer.get_vocab() or len(tokenizer.encode(name, add_special_tokens=False)) == 1:
            raise BadInput(
                f"data.placeholder_token: {name!r} is in the model's vocabulary; choose another, like <{name}>"
            )
    tokenizer.add_tokens(names)
    ids: list[int] = tokenizer.convert_tokens_to_ids(names)
    return ids
