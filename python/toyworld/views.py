"""How a picture of the training set was resized and cropped, for layouts whose UNet is told so."""

import random
from dataclasses import dataclass, replace

from PIL import Image

from toyworld.drawings import draw_toy
from toyworld.networks import SIDE
from toyworld.toys import Pose, Toy

_SIDES = (32, 48, 64, 128, 256, 512, 1024)
"""Heights of original pictures; the first two are small enough to be blurred."""


@dataclass(frozen=True)
class View:
    """A picture that was scaled to a height of 64 pixels, of which a square was kept."""

    height: int = SIDE
    """Of the original picture."""
    margin: int = 0
    """By how much the scaled picture is wider than the square, in pixels."""
    left: int = 0
    """Where the square begins in the scaled picture, in pixels."""

    @property
    def time_ids(self) -> tuple[int, ...]:
        """As the UNet gets it: height and width of the original, top and left of the crop, height and width kept."""
        return (self.height, self.height * (SIDE + self.margin) // SIDE, 0, self.left, SIDE, SIDE)


def random_view(rng: random.Random) -> View:
    """Half of the pictures as they are; of the others, some small and some wide."""
    margin = rng.choice((16, 32, 48)) if rng.random() < 0.3 else 0
    return View(rng.choice(_SIDES), margin, rng.randint(0, margin))


def draw_view(toy: Toy, pose: Pose, view: View) -> Image.Image:
    """Draw a toy that stood in the middle of the original, as an RGB image of 64 x 64 pixels."""
    seen = replace(pose, x=pose.x + (view.margin / 2 - view.left) / SIDE) if view.margin else pose
    drawn = draw_toy(toy, seen, min(view.height, SIDE))
    return drawn.resize((SIDE, SIDE), Image.Resampling.BICUBIC) if view.height < SIDE else drawn
