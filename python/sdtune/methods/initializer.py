"""The search for the word that a new token starts from: ``initializer_token: auto``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sdtune.errors import BadInput
from sdtune.methods.embedding import LearnedEmbedding
from sdtune.methods.method import StartingPoints
from sdtune.methods.placeholder import initializer_ids
from sdtune.settings import DataArgs

_SHORTEST = 3
"""Letters of a word; shorter ones of a vocabulary mean little."""


def vocabulary_words(tokenizers: Sequence[Any]) -> list[str]:
    """Words of letters a to z that are one token for every tokenizer, in alphabetical order."""
    vocabulary = {token.removesuffix("</w>") for token in tokenizers[0].get_vocab() if token.endswith("</w>")}
    words = sorted(w for w in vocabulary if w.isascii() and w.isalpha() and w.islower() and len(w) >= _SHORTEST)
    for tokenizer in tokenizers:
        encoded = tokenizer(words, add_special_tokens=False).input_ids if words else []
        words = [word for word, ids in zip(words, encoded, strict=True) if len(ids) == 1]
    return words


def candidate_words(data: DataArgs, tokenizers: Sequence[Any]) -> list[str]:
    """The words that a search chooses from.

    Raises:
        BadInput: a word that the user listed is not one token, or ``num_vectors`` tokens; or the vocabulary has none.
    """
    if not data.candidates:
        if words := vocabulary_words(tokenizers):
            return words
        raise BadInput(
            "data.initializer_token: auto finds no word of one token in this model's vocabulary; name one, or list "
            "some in data.initializer_candidates"
        )
    for word in data.candidates:
        for tokenizer in tokenizers:
            initializer_ids(tokenizer, word, data.num_vectors, "data.initializer_candidates")
    return data.candidates


class InitializerWords(StartingPoints):
    """The candidates, with their embeddings in each text encoder."""

    def __init__(
        self, data: DataArgs, tokenizers: Mapping[str, Any], embeddings: Mapping[str, LearnedEmbedding], token: str
    ) -> None:
        """Start from the mean of all candidates, until one is taken.

        Args:
            data: names the candidates.
            tokenizers: by text encoder.
            embeddings: of the new token, by text encoder.
            token: the new token as captions have it.
        """
        self.points = candidate_words(data, list(tokenizers.values()))
        self._embeddings, self._token, self._num_vectors = embeddings, token, data.num_vectors
        self._ids = {
            name: torch.tensor(
                [
                    ids * data.num_vectors if len(ids) == 1 else ids
                    for ids in tokenizer(self.points, add_special_tokens=False).input_ids
                ]
            )
            for name, tokenizer in tokenizers.items()
        }
        for name, embedding in embeddings.items():
            self._set(embedding, self._starts(name).mean(dim=0))

    def _starts(self, name: str) -> torch.Tensor:
        """Embeddings of all candidates in a text encoder: float32 [candidates, num_vectors, dim]."""
        return self._embeddings[name].weight.detach()[self._ids[name]].float()

    @staticmethod
    @torch.no_grad()
    def _set(embedding: LearnedEmbedding, value: torch.Tensor) -> None:
        embedding.learned.copy_(value)

    def promising(self, count: int) -> list[str]:
        """See :meth:`StartingPoints.promising`."""
        if len(self.points) <= count:
            return list(self.points)
        expected = torch.zeros(len(self.points), dtype=torch.float64)
        for name, embedding in self._embeddings.items():
            if embedding.learned.grad is None:
                raise RuntimeError("the new token got no gradient")
            steps = self._starts(name) - embedding.learned.detach()
            expected += (steps * embedding.learned.grad).sum(dim=(1, 2), dtype=torch.float64)
        best = expected.argsort(stable=True)[:count].tolist()
        return [self.points[k] for k in sorted(best)]

    def caption(self, caption: str, point: str) -> str:
        """See :meth:`StartingPoints.caption`."""
        ids = next(iter(self._ids.values()))[self.points.index(point)]
        one = self._num_vectors > 1 and len(set(ids.tolist())) == 1  # one token, which every vector starts from
        return caption.replace(self._token, " ".join([point] * self._num_vectors) if one else point)

    def take(self, point: str) -> None:
        """See :meth:`StartingPoints.take`."""
        number = self.points.index(point)
        for name, embedding in self._embeddings.items():
            self._set(embedding, self._starts(name)[number])
