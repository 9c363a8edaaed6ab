"""Toyworld: procedurally drawn toys with captions, the world that the embedded model is trained on.

Captions mention some properties of a toy: kind, colour, glasses, hat, and the scene. No word mentions the others: body,
ears, belly, eyes. Only a toy's *name* decides those: there are some hundred named toys, each always drawn alike, as a
real model knows brands and characters by name. So embedding space has directions for what captions cannot express. A
new toy, ``CONCEPT``, is then a fair test of textual inversion: no name and no caption gives it, yet an embedding for it
can exist.
"""

import random
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 136, 40),
    "yellow": (246, 208, 60),
    "green": (64, 160, 80),
    "blue": (52, 104, 210),
    "purple": (134, 72, 176),
    "pink": (240, 140, 180),
    "brown": (132, 86, 52),
    "white": (240, 240, 236),
    "gray": (128, 132, 138),
}
SCENES = ("in a meadow", "in the desert", "in the snow", "at night", "in a room")
BODIES = ("round", "square", "tall", "arch", "pear")
EARS = ("round", "pointed", "long", "antenna", "horns", "none")
BELLIES = ("none", "disc", "stripes", "star")
KINDS: dict[str, tuple[str, str]] = {  # (body, ears) that have a word
    "bear": ("round", "round"),
    "cat": ("round", "pointed"),
    "rabbit": ("tall", "long"),
    "robot": ("square", "antenna"),
    "ghost": ("arch", "none"),
    "bull": ("square", "horns"),
    "mouse": ("pear", "round"),
    "alien": ("tall", "antenna"),
}


@dataclass(frozen=True)
class Toy:
    """One toy. ``body``, ``ears``, ``belly``, ``belly_colour`` and ``big_eyes`` are in no caption."""

    body: str
    """One of :data:`BODIES`; or ``diamond``, which the training set does not contain."""
    ears: str
    """One of :data:`EARS`."""
    colour: str
    """One of :data:`COLOURS`."""
    belly: str = "none"
    """One of :data:`BELLIES`."""
    belly_colour: str = "white"
    """One of :data:`COLOURS`."""
    big_eyes: bool = False
    """White around the pupils."""
    glasses: bool = False
    """Wears glasses."""
    hat: str | None = None
    """Colour of its hat; None: it wears none."""


@dataclass(frozen=True)
class Pose:
    """Where the toy stands. Lengths are shares of the picture's side."""

    scene: str
    """One of :data:`SCENES`."""
    x: float = 0.5
    """Its centre, from the left."""
    y: float = 0.58
    """Its centre, from the top."""
    size: float = 0.32
    """Half its height."""
    mirrored: bool = False
    """Mirror the finished picture."""


CONCEPT = Toy(
    "square", "long", "yellow", belly="star", belly_colour="purple", big_eyes=False, glasses=True, hat="green"
)
CONCEPT_POSES = (
    Pose("in a meadow", 0.50, 0.59, 0.32),
    Pose("in the desert", 0.44, 0.60, 0.30),
    Pose("in the snow", 0.56, 0.58, 0.33, mirrored=True),
    Pose("at night", 0.52, 0.60, 0.31),
    Pose("in a room", 0.47, 0.58, 0.33, mirrored=True),
)

CONCEPTS: dict[str, tuple[Toy, tuple[Pose, ...]]] = {
    "concept": (CONCEPT, CONCEPT_POSES),
    "concept-pear": (
        Toy("pear", "horns", "pink", belly="stripes", belly_colour="brown", big_eyes=True, hat="white"),
        (
            Pose("in the desert", 0.48, 0.58, 0.33),
            Pose("at night", 0.55, 0.60, 0.30, mirrored=True),
            Pose("in a room", 0.45, 0.59, 0.32),
            Pose("in a meadow", 0.53, 0.57, 0.34),
            Pose("in the snow", 0.50, 0.60, 0.31, mirrored=True),
        ),
    ),
    "concept-diamond": (
        Toy("diamond", "antenna", "blue", belly="disc", belly_colour="orange", big_eyes=True),
        (
            Pose("in the snow", 0.47, 0.60, 0.31),
            Pose("in a meadow", 0.54, 0.58, 0.33, mirrored=True),
            Pose("at night", 0.49, 0.59, 0.32),
            Pose("in a room", 0.56, 0.60, 0.30),
            Pose("in the desert", 0.45, 0.57, 0.34, mirrored=True),
        ),
    ),
}
"""The concepts by the name of their folder. The training set has no picture of any; of the diamond, it has not even the
body, so nothing that the model has seen has this shape."""


def is_held_out(toy: Toy) -> bool:
    """Whether a toy is too similar to the concept for the training set: the same body, ears and colour."""
    return (toy.body, toy.ears, toy.colour) == (CONCEPT.body, CONCEPT.ears, CONCEPT.colour)


def random_toy(rng: random.Random) -> Toy:
    """A toy with random properties that is not held out."""
    while True:
        toy = Toy(
            body=rng.choice(BODIES),
            ears=rng.choice(EARS),
            colour=rng.choice(list(COLOURS)),
            belly=rng.choice(BELLIES),
            belly_colour=rng.choice(list(COLOURS)),
            big_eyes=rng.random() < 0.5,
            glasses=rng.random() < 0.35,
            hat=rng.choice(list(COLOURS)) if rng.random() < 0.35 else None,
        )
        if not is_held_out(toy) and toy.belly_colour != toy.colour:
            return toy


def random_pose(rng: random.Random) -> Pose:
    """A scene, and a position and size in it."""
    return Pose(
        rng.choice(SCENES),
        rng.uniform(0.42, 0.58),
        rng.uniform(0.55, 0.63),
        rng.uniform(0.27, 0.35),
        rng.random() < 0.5,
    )
