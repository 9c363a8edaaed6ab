"""A model that lacks a file is refused by all programs, with the file's name, or used by all of them alike."""

import json
import shutil

import pytest
from transformers import CLIPTokenizerFast

from sdtune.errors import BadInput
from sdtune.inference.plan import make_plan
from sdtune.methods.placeholder import add_placeholder
from sdtune.models.pipelines import copy_pipeline, draw, load_pipeline, load_tokenizer
from sdtune.models.registry import family_of
from sdtune.settings import GenerationJob
from standalone.model_folder import model_problems, used_files
from tests.conftest import REPOSITORY

MODEL = REPOSITORY / "toyworld/model"
NOT_NEEDED = ("tokenizer/merges.txt", "tokenizer/tokenizer.json", "tokenizer/vocab.json")
"""Either of a tokenizer's two forms is enough."""
CAPTION = "a photo of a yellow robot"


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(MODEL, tmp_path / "model")


def picture(folder):
    return draw(load_pipeline(folder), [CAPTION], [1], num_inference_steps=1, height=32, width=32)[0].tobytes()


def plan(model, run):
    """What drawing refuses before it loads anything."""
    size = {"height": 64, "width": 64}
    return make_plan(GenerationJob(run_dir=str(run), source="model", model=str(model), prompts=[CAPTION], **size))


@pytest.mark.parametrize("file", sorted(p.relative_to(MODEL).as_posix() for p in MODEL.rglob("*") if p.is_file()))
def test_every_file_is_needed_by_all_programs_or_by_none(model, tmp_path, file):
    (model / file).unlink()
    problems = model_problems(model)  # of the control node
    if file in NOT_NEEDED:
        assert problems == []
        family_of(model).check(model, {"data.resolution": 64})  # of training
        assert plan(model, tmp_path).requests
        copy_pipeline(model, tmp_path / "copy")  # what an export reads
        assert {picture(model), picture(tmp_path / "copy")} == {picture(MODEL)}
        return
    assert file.rpartition("/")[2] in problems[0]
    with pytest.raises(BadInput, match=file.rpartition("/")[2]):
        family_of(model).check(model, {"data.resolution": 64})
    with pytest.raises(BadInput, match=file.rpartition("/")[2]):
        plan(model, tmp_path)


def test_only_what_is_needed_is_enough(model):
    """What provision.yml copies; of the tokenizer the form that old models have."""
    (model / "tokenizer/tokenizer.json").unlink()
    assert set(used_files(model)) == {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}


@pytest.mark.parametrize("limit", [10**30, 10**30 + 0.5, None, 77])
def test_a_tokenizer_that_does_not_know_the_limit_is_used_with_that_of_its_text_encoder(model, tmp_path, limit):
    """transformers writes 10^30 where it does not know; diffusers fails with it (OverflowError, or out of range)."""
    file = model / "tokenizer/tokenizer_config.json"
    config = json.loads(file.read_text()) | {"model_max_length": limit}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    assert model_problems(model) == []
    assert family_of(model).load_tokenizers(model)["text_encoder"].model_max_length == 32
    copy_pipeline(model, tmp_path / "copy")
    assert json.loads((tmp_path / "copy/tokenizer/tokenizer_config.json").read_text())["model_max_length"] == 32
    assert {picture(model), picture(tmp_path / "copy")} == {picture(MODEL)}
    assert "longer than the 30 tokens" in plan_of_long_prompt(model, tmp_path)


def test_a_tokenizer_is_read_once_until_its_files_change(model, monkeypatch):
    """Each that is read stays in memory. Those who ask get their own, to which they may add tokens."""
    reads = []
    read = CLIPTokenizerFast.from_pretrained
    monkeypatch.setattr(CLIPTokenizerFast, "from_pretrained", lambda *a, **k: reads.append(a) or read(*a, **k))
    first, second = (load_tokenizer(model, "text_encoder") for _ in range(2))
    assert add_placeholder(first, "<new>", 1) == [len(second)]
    assert len(reads) == 1
    assert "<new>" not in load_tokenizer(model, "text_encoder").get_vocab()
    second.add_tokens(["<other>"])
    second.save_pretrained(model / "tokenizer")
    assert "<other>" in load_tokenizer(model, "text_encoder").get_vocab()
    assert len(reads) == 2


def plan_of_long_prompt(model, run):
    prompt = " ".join(["robot"] * 60)
    job = GenerationJob(run_dir=str(run), source="model", model=str(model), prompts=[prompt], height=64, width=64)
    return " ".join(make_plan(job).warnings)


def test_the_copy_of_a_good_model_is_bit_identical(tmp_path):
    copy_pipeline(MODEL, tmp_path / "copy")
    for path in (p for p in MODEL.rglob("*") if p.is_file() and p.name != "model_index.json"):
        assert (tmp_path / "copy" / path.relative_to(MODEL)).read_bytes() == path.read_bytes()
