"""The placeholder token of textual inversion: its name in captions, and its ids in a tokenizer.

A placeholder of several vectors is several tokens. This module does not import torch.
"""

import re
from typing import Any

from sdtune.errors import BadInput, shown

_ENDS = 2  # the tokens of start and end, which every text gets


def token_names(placeholder: str, num_vectors: int) -> list[str]:
    """Tokens of a placeholder of ``num_vectors`` vectors, named as in diffusers' ``load_textual_inversion``."""
    return [placeholder, *(f"{placeholder}_{i}" for i in range(1, num_vectors))]


def word_of(placeholder: str) -> str:
    """The placeholder without angle brackets, as a file's name: what tools call an embedding in prompts."""
    return re.sub(r"[^\w.-]", "_", placeholder.strip("<>")) or "embedding"


def expand_placeholder(text: str, placeholder: str, num_vectors: int) -> str:
    """``text`` with the placeholder replaced by all of its tokens; unchanged where the placeholder is empty."""
    if not placeholder:
        return text
    return text.replace(placeholder, " ".join(token_names(placeholder, num_vectors)))


def initializer_ids(
    tokenizer: Any, initializer: str, num_vectors: int, setting: str = "data.initializer_token"
) -> list[int]:
    """Vocabulary ids whose embeddings the learned ones start from, one for each vector; ``setting`` named them.

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
        f"{setting}: {initializer!r} is {len(ids)} tokens for this model ({tokens}); "
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


def lost_words(tokenizer: Any, limit: int, text: str) -> str:
    """The end of ``text`` that a text encoder does not see, because it reads no more than ``limit`` tokens.

    Args:
        tokenizer: a ``Tokenizer`` of the library tokenizers, without truncation and padding.
        limit: tokens that the encoder reads, with those of start and end.
        text: as the encoder gets it, with all tokens of the placeholder.
    """
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    room = max(0, limit - _ENDS)
    return text[offsets[room][0] :].strip() if len(offsets) > room else ""


class TextLimit:
    """How much text a text encoder reads, for a placeholder of several tokens."""

    def __init__(self, tokenizer: Any, limit: int, placeholder: str, num_vectors: int) -> None:
        """Take a tokenizer of the library tokenizers that knows the placeholder's tokens; see :func:`lost_words`."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.limit = tokenizer, limit
        self._placeholder, self._num_vectors = placeholder, num_vectors

    def lost(self, text: str) -> str:
        """The words of ``text`` that are cut off, as a message quotes them; empty if all are read."""
        names = token_names(self._placeholder, self._num_vectors) if self._placeholder else []
        words = lost_words(self._tokenizer, self.limit, expand_placeholder(text, self._placeholder, self._num_vectors))
        return shown(words.replace(" ".join(names), self._placeholder)) if words else ""

    def check_templates(self, templates: tuple[str, ...], source: str | None) -> None:
        """Refuse templates whose caption the encoder would not read to its end.

        Raises:
            BadInput: names the first such template, and what is cut off.
        """
        room = self.limit - _ENDS
        if self._num_vectors > room:
            raise BadInput(
                f"data.num_vectors: {self._num_vectors} vectors do not fit into a caption, for this model's text "
                f"encoder reads {room} tokens; take fewer"
            )
        for template in templates:
            if lost := self.lost(template.replace("{}", self._placeholder)):
                if source is None:
                    raise BadInput(
                        f"data.num_vectors: with {self._num_vectors} vectors the caption {template!r} is longer than "
                        f"the {room} tokens that this model's text encoder reads, and {lost} is cut off; take fewer"
                    )
                raise BadInput(
                    f"data.templates_file: {source}: {shown(template)} is longer than the {room} tokens that this "
                    f"model's text encoder reads, and {lost} is cut off; shorten it"
                )

    def warnings(self, texts: dict[str, str]) -> list[str]:
        """A warning for each text that is cut off.

        Args:
            texts: {what a message calls it: text}.
        """
        room = self.limit - _ENDS
        return [
            f"{name} is longer than the {room} tokens that this model's text encoder reads: {lost} is cut off"
            for name, text in texts.items()
            if (lost := self.lost(text))
        ]
