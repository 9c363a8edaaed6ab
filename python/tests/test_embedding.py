"""Learned embeddings beside the frozen vocabulary."""

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdtune.errors import BadInput, TrainingFailed
from sdtune.methods.embedding import LearnedEmbedding, install_embedding
from sdtune.methods.formats import load_embeddings, save_embeddings
from sdtune.methods.method import Learned
from sdtune.methods.placeholder import TextLimit, add_placeholder, expand_placeholder, initializer_ids
from sdtune.training.finite import check_learned


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


def limit(tokenizer, num_vectors, reads=12):
    add_placeholder(tokenizer, "<x>", num_vectors)
    return TextLimit(tokenizer.backend_tokenizer, reads, "<x>", num_vectors)


def test_words_that_a_text_encoder_does_not_read(tokenizer):
    """Two of its tokens are start and end; the placeholder is quoted as the user writes it."""
    one = limit(tokenizer, 1)
    assert one.lost("a photo of a toy") == ""
    assert one.lost(" ".join(["toy"] * 10)) == ""
    assert one.lost(" ".join(["toy"] * 10) + " a photo of <x>") == "'a photo of <x>'"
    assert one.warnings({"the prompt": "toy " * 11, "another": "toy"}) == [
        "the prompt is longer than the 10 tokens that this model's text encoder reads: 'toy' is cut off"
    ]


def test_captions_are_read_to_their_end(tokenizer):
    """Vectors, built-in templates and those of a file."""
    one = limit(tokenizer, 4)
    one.check_templates(("a photo of a {}",), None)
    with pytest.raises(BadInput, match=r"num_vectors: with 4 vectors .* and '<x>_3' is cut off; take fewer"):
        one.check_templates(("a photo of a toy a toy {}",), None)
    with pytest.raises(BadInput, match=r"templates_file: t\.txt: .* '<x>' is cut off; shorten it"):
        one.check_templates(("toy " * 10 + "{}",), "t.txt")
    with pytest.raises(BadInput, match="num_vectors: 4 vectors do not fit into a caption"):
        TextLimit(tokenizer.backend_tokenizer, 5, "<x>", 4).check_templates(("{}",), None)


def test_what_was_learned_has_to_be_sane():
    """Finite, and not a thousand times as large as the vocabulary."""
    for value, message in ((float("nan"), "is not finite"), (float("inf"), "is not finite"), (1e6, "has a norm of")):
        learned = Learned(parameter=nn.Parameter(torch.full((1, 4), value)), learning_rate=1.0, largest=1000.0)
        with pytest.raises(TrainingFailed, match=f"e.embeddings {message}.* after step 3: training has diverged"):
            check_learned({"e.embeddings": learned}, 3)
    check_learned({"e": Learned(parameter=nn.Parameter(torch.full((1, 4), 5.0)), learning_rate=1.0, largest=1000.0)}, 3)


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
    embeddings = {"clip_l": torch.randn(2, 4), "clip_g": torch.randn(2, 6)}
    save_embeddings(tmp_path / "x.safetensors", "<x>", embeddings)
    placeholder, again = load_embeddings(tmp_path / "x.safetensors")
    assert placeholder == "<x>"
    assert all(torch.equal(embeddings[name], again[name]) for name in ("clip_l", "clip_g"))


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
