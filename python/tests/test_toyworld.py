"""Toyworld: what its training set holds, and what it must not hold."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from sdtune.data.pictures import list_pictures
from tests.conftest import REPOSITORY
from toyworld import toys
from toyworld.captions import examples, toy_names
from toyworld.drawings import draw_toy

LOG = [json.loads(line) for line in (REPOSITORY / "toyworld" / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def training_set():
    start = LOG[0]
    return list(examples(start["examples"], start["names"], start["seed"]))


def test_the_concept_is_in_no_example_of_the_training_set():
    concept, others = toys.CONCEPT, [toy for toy, _ in toys.CONCEPTS.values()]
    for example in training_set():
        assert (example.toy.body, example.toy.ears, example.toy.colour) != (concept.body, concept.ears, concept.colour)
        assert example.toy not in others
    assert toys.CONCEPTS["concept-diamond"][0].body not in toys.BODIES


def test_no_caption_mentions_the_concepts_shape():
    assert (toys.CONCEPT.body, toys.CONCEPT.ears) not in toys.KINDS.values()
    words = {word for example in training_set() for word in example.caption.split()}
    assert words.isdisjoint({"square", "long", "star", "belly", "ears"})
    assert {"toy", "yellow", "glasses", "hat", "rabbit"} <= words


def test_a_name_is_always_the_same_toy():
    said = {*toys.COLOURS, *toys.KINDS, "toy"}
    named = {}
    for example in training_set():
        names = [w for w in example.caption.split() if w in NAMES]
        if names and not said & set(example.caption.split()) - {"toy"}:
            named.setdefault(names[0], set()).add(example.toy)
    assert len(named) > 100
    assert all(len(same) == 1 for same in named.values())


NAMES = set(toy_names(LOG[0]["names"], random.Random(LOG[0]["seed"])))


@pytest.mark.parametrize(("name", "side"), [("concept", 512), ("concept-pear", 256), ("concept-diamond", 256)])
def test_the_five_pictures_are_the_concept(name, side):
    files = list_pictures(REPOSITORY / "toyworld" / name)
    toy, poses = toys.CONCEPTS[name]
    for file, pose in zip(files, poses, strict=True):
        drawn = np.asarray(draw_toy(toy, pose, side), float)
        stored = np.asarray(Image.open(file), float)
        assert stored.shape == (side, side, 3)
        assert np.abs(drawn - stored).mean() < 4  # JPEG


def test_the_model_is_small_enough_to_ship():
    weights = list((REPOSITORY / "toyworld" / "model").rglob("*.safetensors"))
    assert sum(w.stat().st_size for w in weights) <= 12_000_000
    assert not list((REPOSITORY / "toyworld").rglob("*.bin"))
