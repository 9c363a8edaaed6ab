"""The tokenizer of the embedded model."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32
"""Sequence length of the text encoder."""


def _train_bpe(captions: list[str]) -> Tokenizer:
    """Train byte-pair encoding until every word of the captions is one token."""
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]|[^\sa-z0-9]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # letters have to be tokens at the end of a word too, so each is in the training text as a word
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-:;()")
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([*captions, *letters], trainer)
    return bpe


def make_tokenizer(captions: list[str], folder: Path, pad: str = END) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer in which every word of the captions is one token; any other text is a few tokens.

    Args:
        captions: of the training set.
        folder: that it is written to.
        pad: the token that fills short texts.

    Raises:
        RuntimeError: a word of the captions is not one token.
    """
    learned = json.loads(_train_bpe(captions).to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(m) for m in learned["merges"]]
    vocabulary = [*alphabet, *(c + "</w>" for c in alphabet), *dict.fromkeys("".join(m) for m in merges), START, END]
    vocab = {token: i for i, token in enumerate(vocabulary)}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=pad,
        model_max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(folder)
    # the two files that every CLIP tokenizer class since 2022 reads
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", encoding="utf-8"
    )
    for word in sorted({w for c in captions for w in c.split()}):
        if len(tokenizer.encode(word, add_special_tokens=False)) != 1 and word.isalpha():
            raise RuntimeError(f"the word {word!r} is not one token")
    return tokenizer
