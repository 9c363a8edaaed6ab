"""Captions of toys, and the training set: drawings with captions."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sdtune.data.captions import OBJECT_TEMPLATES
from toyworld.toys import CONCEPT, KINDS, Pose, Toy, random_pose, random_toy


def toy_names(count: int, rng: random.Random) -> list[str]:
    """``count`` distinct made-up names of two or three syllables."""
    syllables = ["".join(p) for p in itertools.product("bdfgklmnprstvz", "aeiou")]
    words = {"".join(rng.choices(syllables, k=rng.choice((2, 3)))) for _ in range(4 * count)}
    return rng.sample(sorted(words), count)


def describe(toy: Toy, noun: str, rng: random.Random, thoroughness: float = 0.7) -> str:
    """A noun phrase for a toy that mentions each property that has a word with probability ``thoroughness``."""
    words = noun if rng.random() > thoroughness else f"{toy.colour} {noun}"
    extras = []
    if toy.glasses and rng.random() < thoroughness:
        extras.append("glasses")
    if toy.hat is not None and rng.random() < thoroughness:
        extras.append(f"a {toy.hat} hat")
    return words + (" with " + " and ".join(extras) if extras else "")


@dataclass(frozen=True)
class Example:
    """A drawing and its caption."""

    toy: Toy
    """What is drawn."""
    pose: Pose
    """Where it stands."""
    caption: str
    """What is said about it."""


def examples(count: int, names: int, seed: int) -> Iterator[Example]:
    """The training set: two fifths named toys, two fifths kinds, one fifth any toy, called ``toy``."""
    rng = random.Random(seed)
    catalogue = {name: random_toy(rng) for name in toy_names(names, rng)}
    for _ in range(count):
        toy, pose, draw = random_toy(rng), random_pose(rng), rng.random()
        if draw < 0.4:
            noun, toy = rng.choice(list(catalogue.items()))
        elif draw < 0.8:
            kind, (body, ears) = rng.choice(list(KINDS.items()))
            noun, toy = kind, replace(toy, body=body, ears=ears)
        else:
            noun = "toy"
        phrase = describe(toy, noun, rng, thoroughness=0.15 if draw < 0.4 else 0.7)
        caption = rng.choice(OBJECT_TEMPLATES).format(phrase)
        if rng.random() < 0.6:
            caption += f" {pose.scene}"
        yield Example(toy, pose, caption)


def best_captions(toy: Toy = CONCEPT) -> list[str]:
    """Noun phrases for a toy that a person could write in the words of the training captions."""
    extras = [*(["glasses"] if toy.glasses else []), *([f"a {toy.hat} hat"] if toy.hat else [])]
    parts = [" with " + " and ".join(extras[:k]) if k else "" for k in range(len(extras) + 1)]
    said = ["toy", *(f"{toy.colour} toy{part}" for part in parts)]
    return [*said, *(f"{toy.colour} {kind}{parts[-1]}" for kind in KINDS)]
