"""Learned embeddings beside the frozen vocabulary."""

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdtune.errors import BadInput
from sdtune.methods.embedding import LearnedEmbedding, install_embedding
from sdtune.methods.formats import load_embeddings, save_embeddings
from sdtune.methods.placeholder import add_placeholder, expand_placeholder, initializer_ids


@pytest.fixture
def tokenizer(untrained_model):
    return CLIPTokenizer.from_pretrained(untrained_model, subfolder="tokenizer")


def test_initializers(tokenizer):
    toy = tokenizer.encode("toy", add_special_tokens=False)
    assert initializer_ids(tokenizer, "toy", 1) == toy
    assert initializer_ids(tokenizer, "toy", 3) == toy * 3
    assert len(initializer_ids(tokenizer, "yellow toy", 2)) == 2
    with pytest.raises(BadInput, match=r"'yellow toy' is 2 tokens for this model .*choose a word of one token"):
        initializer_ids(tokenizer, "yellow toy", 1)


def test_a_placeholder_in_the_vocabulary_is_refused(tokenizer):
    with pytest.raises(BadInput, match="'toy' is in the model's vocabulary"):
        add_placeholder(tokenizer, "toy", 1)
    add_placeholder(tokenizer, "<x>", 2)
    with pytest.raises(BadInput, match="'<x>_1' is in the model's vocabulary"):
        add_placeholder(tokenizer, "<x>_1", 1)


def test_a_placeholder_of_three_vectors_is_three_tokens(tokenizer):
    ids = add_placeholder(tokenizer, "<x>", 3)
    text = expand_placeholder("a photo of a <x>", "<x>", 3)
    assert text == "a photo of a <x> <x>_1 <x>_2"
    assert tokenizer.encode(text, add_special_tokens=False)[-3:] == ids


def test_it_looks_up_what_a_grown_embedding_looks_up():
    table, learned, ids = torch.randn(10, 4), torch.randn(2, 4), torch.tensor([[0, 9, 10, 11, 3]])
    grown = nn.Embedding.from_pretrained(torch.cat([table, learned]))
    assert torch.equal(LearnedEmbedding(table, 10, learned)(ids), grown(ids))


def test_only_the_learned_embeddings_get_a_gradient():
    embedding = LearnedEmbedding(torch.randn(10, 4, dtype=torch.bfloat16), 10, torch.randn(2, 4))
    before = embedding.weight.clone()
    embedding(torch.tensor([[1, 10, 10, 2]])).sum().backward()
    assert [name for name, _ in embedding.named_parameters()] == ["learned"]
    assert embedding.learned.dtype == torch.float32
    assert torch.equal(embedding.learned.grad, torch.tensor([[2.0] * 4, [0.0] * 4]))
    assert torch.equal(embedding.weight, before)


def test_learned_embeddings_survive_a_file(tmp_path):
    embeddings = torch.randn(2, 4)
    save_embeddings(tmp_path / "x.safetensors", "<x>", embeddings)
    placeholder, again = load_embeddings(tmp_path / "x.safetensors")
    assert placeholder == "<x>"
    assert torch.equal(embeddings, again)


@pytest.mark.parametrize("num_vectors", [1, 4])
def test_training_them_alone_equals_training_the_full_matrix(untrained_model, num_vectors):
    """Twelve steps of AdamW with weight decay; the plain loop updates the full matrix and restores its frozen rows."""
    folder = untrained_model
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    start = initializer_ids(tokenizer, "toy", num_vectors)
    ids = add_placeholder(tokenizer, "<x>", num_vectors)
    captions = [expand_placeholder(c, "<x>", num_vectors) for c in ("a photo of a <x>", "the <x> in the snow")]
    tokens = tokenizer(captions, padding="max_length", max_length=32, return_tensors="pt").input_ids
    target = torch.randn(2, 32, 128, generator=torch.Generator().manual_seed(1))
    options = {"lr": 1e-2, "weight_decay": 0.1}

    ours = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").requires_grad_(False).eval()
    embedding = install_embedding(ours, ids, start)
    optimizer = torch.optim.AdamW([embedding.learned], **options)
    for _ in range(12):
        (ours(tokens).last_hidden_state - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    plain = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").requires_grad_(False).eval()
    plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    matrix = plain.get_input_embeddings().weight.requires_grad_(True)
    with torch.no_grad():
        matrix[ids] = matrix[start]
    original = matrix.detach().clone()
    others = torch.ones(len(matrix), dtype=torch.bool)
    others[ids] = False
    optimizer = torch.optim.AdamW([matrix], **options)
    for _ in range(12):
        (plain(tokens).last_hidden_state - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            matrix[others] = original[others]

    assert (matrix[ids] - original[ids]).abs().max() > 0.01  # it did learn
    torch.testing.assert_close(embedding.learned, matrix[ids], rtol=1e-6, atol=1e-7)
    assert torch.equal(embedding.weight, original[: ids[0]])
