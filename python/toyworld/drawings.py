"""Toyworld: procedurally drawn, captioned toys, the world that the embedded model is trained on.

A toy has properties that captions say (kind, colour, glasses, hat, the scene it stands in) and properties that no word
says (its body, its ears, the patch on its belly, its eyes). The second sort is fixed only by a toy's *name*: there are
some hundred named toys, each always drawn alike, as a real model knows brands and characters by name. So there are
directions in embedding space for what captions cannot say, and a new toy, ``CONCEPT``, is a fair stage for textual
inversion: no name and no caption gives it, yet a vector for it can exist.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from sdtune.data.captions import OBJECT_TEMPLATES

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
KINDS: dict[str, tuple[str, str]] = {  # the (body, ears) that have a word of their own
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
    ears: str
    colour: str
    belly: str = "none"
    belly_colour: str = "white"
    big_eyes: bool = False
    glasses: bool = False
    hat: str | None = None


@dataclass(frozen=True)
class Pose:
    """Where the toy stands: scene, centre and half-height as shares of the picture's side, mirrored or not."""

    scene: str
    x: float = 0.5
    y: float = 0.58
    size: float = 0.32
    mirrored: bool = False


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


def is_held_out(toy: Toy) -> bool:
    """Whether a toy is too near to the concept to be in the training set: its silhouette in its colour."""
    return (toy.body, toy.ears, toy.colour) == (CONCEPT.body, CONCEPT.ears, CONCEPT.colour)


# --- drawing -------------------------------------------------------------------------------------------------------


def _shade(rgb: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    return (min(255, int(rgb[0] * factor)), min(255, int(rgb[1] * factor)), min(255, int(rgb[2] * factor)))


def _draw_scene(draw: ImageDraw.ImageDraw, scene: str, side: int) -> None:
    sky, ground = {
        "in a meadow": ((150, 206, 240), (120, 184, 84)),
        "in the desert": ((250, 224, 176), (222, 178, 110)),
        "in the snow": ((196, 210, 226), (236, 242, 248)),
        "at night": ((26, 30, 68), (44, 50, 76)),
        "in a room": ((232, 200, 190), (150, 106, 78)),
    }[scene]
    draw.rectangle((0, 0, side, side), fill=sky)
    draw.rectangle((0, 0.68 * side, side, side), fill=ground)

    def disc(x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse(((x - r) * side, (y - r) * side, (x + r) * side, (y + r) * side), fill=fill)

    if scene == "in a meadow":
        disc(0.12, 0.13, 0.07, (255, 240, 150))
    elif scene == "in the desert":
        disc(0.86, 0.16, 0.09, (250, 170, 90))
    elif scene == "at night":
        disc(0.86, 0.14, 0.08, (240, 236, 200))
    elif scene == "in a room":
        draw.rectangle((0.04 * side, 0.08 * side, 0.24 * side, 0.36 * side), fill=(180, 220, 240))


def draw_toy(toy: Toy, pose: Pose, side: int = 64, oversample: int = 4) -> Image.Image:
    """Draw a toy as an RGB picture of ``side`` x ``side`` pixels, smoothed by drawing ``oversample`` times as large."""
    big = side * oversample
    image = Image.new("RGB", (big, big))
    draw = ImageDraw.Draw(image)
    _draw_scene(draw, pose.scene, big)

    unit = pose.size * big
    cx, cy = pose.x * big, pose.y * big
    body = COLOURS[toy.colour]
    edge = _shade(body, 0.55)
    width = max(1, round(0.06 * unit))

    def at(x: float, y: float) -> tuple[float, float]:
        return cx + x * unit, cy + y * unit

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return (*at(x0, y0), *at(x1, y1))

    def ellipse(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int] = body) -> None:
        draw.ellipse(box(x0, y0, x1, y1), fill=fill, outline=edge, width=width)

    # the outline of each body: half-width at the top, where ears and hat sit, and the top itself
    half, top = {
        "round": (0.62, -0.62),
        "square": (0.62, -0.74),
        "tall": (0.34, -0.86),
        "arch": (0.5, -0.72),
        "pear": (0.36, -0.78),
    }[toy.body]

    for sign in (-1, 1):
        x = sign * half * 0.85
        if toy.ears == "round":
            ellipse(x - 0.28, top - 0.28, x + 0.28, top + 0.28)
            ellipse(x - 0.12, top - 0.12, x + 0.12, top + 0.12, _shade(body, 0.75))
        elif toy.ears == "pointed":
            points = [at(x - 0.3, top + 0.25), at(x + sign * 0.12, top - 0.5), at(x + 0.3, top + 0.25)]
            draw.polygon(points, fill=body, outline=edge, width=width)
        elif toy.ears == "long":
            ellipse(x - 0.17, top - 0.85, x + 0.17, top + 0.25)
        elif toy.ears == "antenna":
            draw.line((*at(x * 0.6, top + 0.2), *at(x, top - 0.5)), fill=edge, width=2 * width)
            ellipse(x - 0.14, top - 0.66, x + 0.14, top - 0.38, (230, 60, 60))
        elif toy.ears == "horns":
            points = [at(x - sign * 0.22, top + 0.2), at(x + sign * 0.35, top - 0.42), at(x + sign * 0.2, top + 0.3)]
            draw.polygon(points, fill=(235, 225, 200), outline=edge, width=width)
        foot = sign * (0.3 if toy.body in ("tall",) else 0.4)
        if toy.body != "arch":
            ellipse(foot - 0.24, 0.74, foot + 0.24, 1.04, _shade(body, 0.8))

    if toy.body == "round":
        ellipse(-0.86, -0.8, 0.86, 0.92)
    elif toy.body == "square":
        draw.rounded_rectangle(box(-0.76, -0.76, 0.76, 0.9), 0.14 * unit, fill=body, outline=edge, width=width)
    elif toy.body == "tall":
        draw.rounded_rectangle(box(-0.54, -0.95, 0.54, 0.92), 0.5 * unit, fill=body, outline=edge, width=width)
    elif toy.body == "arch":
        arc = [at(0.74 * math.cos(a), -0.1 - 0.72 * math.sin(a)) for a in (math.pi * k / 24 for k in range(25))]
        hem = [at(-0.74 + 1.48 * k / 6, 1.0 if k % 2 == 0 else 0.78) for k in range(7)]
        draw.polygon([*arc, *hem], fill=body, outline=edge, width=width)
    else:
        ellipse(-0.86, -0.28, 0.86, 0.94)
        ellipse(-0.52, -0.86, 0.52, 0.1)
        draw.ellipse(box(-0.44, -0.4, 0.44, 0.3), fill=body)

    belly = COLOURS[toy.belly_colour]
    if toy.belly == "disc":
        draw.ellipse(box(-0.34, 0.16, 0.34, 0.76), fill=belly)
    elif toy.belly == "stripes":
        for y in (0.14, 0.4, 0.66):
            draw.rectangle(box(-0.5, y, 0.5, y + 0.13), fill=belly)
    elif toy.belly == "star":
        spokes = [(0.4 if k % 2 == 0 else 0.17, math.pi * (k / 5 - 0.5)) for k in range(10)]
        draw.polygon([at(r * math.cos(a), 0.46 + r * math.sin(a)) for r, a in spokes], fill=belly)

    dark, white = (24, 24, 28), (250, 250, 250)
    for sign in (-1, 1):
        x = sign * 0.27
        if toy.glasses:
            lens = box(x - 0.24, -0.48, x + 0.24, 0.0)
            draw.ellipse(lens, fill=white, outline=dark, width=2 * width)
        elif toy.big_eyes:
            draw.ellipse(box(x - 0.2, -0.44, x + 0.2, -0.04), fill=white)
        draw.ellipse(box(x - 0.1, -0.34, x + 0.1, -0.14), fill=dark)
    if toy.glasses:
        draw.line((*at(-0.06, -0.28), *at(0.06, -0.28)), fill=dark, width=2 * width)
    draw.arc(box(-0.16, -0.14, 0.16, 0.12), 20, 160, fill=dark, width=width)

    if toy.hat is not None:
        hat = COLOURS[toy.hat]
        brim = _shade(hat, 0.7)
        draw.polygon([at(-0.3, top + 0.02), at(0, top - 0.7), at(0.3, top + 0.02)], fill=hat, outline=brim, width=width)
        draw.rounded_rectangle(box(-0.44, top - 0.04, 0.44, top + 0.14), 0.05 * unit, fill=brim)

    if pose.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.resize((side, side), Image.Resampling.BOX) if oversample > 1 else image


# --- captions ------------------------------------------------------------------------------------------------------


def toy_names(count: int, rng: random.Random) -> list[str]:
    """``count`` distinct made-up names of two or three syllables."""
    syllables = ["".join(p) for p in itertools.product("bdfgklmnprstvz", "aeiou")]
    words = {"".join(rng.choices(syllables, k=rng.choice((2, 3)))) for _ in range(4 * count)}
    return rng.sample(sorted(words), count)


def random_toy(rng: random.Random) -> Toy:
    """A toy of random properties that is not held out."""
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
    """A scene, and a place and size in it."""
    return Pose(
        rng.choice(SCENES),
        rng.uniform(0.42, 0.58),
        rng.uniform(0.55, 0.63),
        rng.uniform(0.27, 0.35),
        rng.random() < 0.5,
    )


def describe(toy: Toy, noun: str, rng: random.Random, thoroughness: float = 0.7) -> str:
    """A noun phrase for a toy: each property that words can say is said with probability ``thoroughness``."""
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
    pose: Pose
    caption: str


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


def best_captions() -> dict[str, str]:
    """Nouns for the concept that a person could write with the words of the training captions, by what they say."""
    said = {
        "toy": "toy",
        "colour": "yellow toy",
        "glasses": "yellow toy with glasses",
        "all": "yellow toy with glasses and a green hat",
    }
    for kind in KINDS:
        said[kind] = f"yellow {kind} with glasses and a green hat"
    return said
