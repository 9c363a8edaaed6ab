"""Drawing a toy with Pillow."""

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from toyworld.toys import COLOURS, Pose, Toy

RGB = tuple[int, int, int]
_DARK, _WHITE = (24, 24, 28), (250, 250, 250)


def _shade(rgb: RGB, factor: float) -> RGB:
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


@dataclass(frozen=True)
class _Canvas:
    """Draws in the toy's own coordinates: the centre is (0, 0), half the toy's height is 1, y grows downwards."""

    draw: ImageDraw.ImageDraw
    centre: tuple[float, float]
    unit: float
    body: RGB

    @property
    def edge(self) -> RGB:
        return _shade(self.body, 0.55)

    @property
    def width(self) -> int:
        return max(1, round(0.06 * self.unit))

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.centre[0] + x * self.unit, self.centre[1] + y * self.unit

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return (*self.at(x0, y0), *self.at(x1, y1))

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: RGB | None = None) -> None:
        self.draw.ellipse(self.box(x0, y0, x1, y1), fill=fill or self.body, outline=self.edge, width=self.width)

    def polygon(self, points: list[tuple[float, float]], fill: RGB) -> None:
        self.draw.polygon(points, fill=fill, outline=self.edge, width=self.width)


def _outline(body: str) -> tuple[float, float]:
    """Half the width at the top of a body, where ears and hat sit, and the top itself."""
    return {
        "round": (0.62, -0.62),
        "square": (0.62, -0.74),
        "tall": (0.34, -0.86),
        "arch": (0.5, -0.72),
        "pear": (0.36, -0.78),
        "diamond": (0.24, -0.66),
    }[body]


def _draw_ear(canvas: _Canvas, toy: Toy, sign: int) -> None:
    half, top = _outline(toy.body)
    x, at = sign * half * 0.85, canvas.at
    if toy.ears == "round":
        canvas.ellipse(x - 0.28, top - 0.28, x + 0.28, top + 0.28)
        canvas.ellipse(x - 0.12, top - 0.12, x + 0.12, top + 0.12, _shade(canvas.body, 0.75))
    elif toy.ears == "pointed":
        points = [at(x - 0.3, top + 0.25), at(x + sign * 0.12, top - 0.5), at(x + 0.3, top + 0.25)]
        canvas.polygon(points, canvas.body)
    elif toy.ears == "long":
        canvas.ellipse(x - 0.17, top - 0.85, x + 0.17, top + 0.25)
    elif toy.ears == "antenna":
        canvas.draw.line((*at(x * 0.6, top + 0.2), *at(x, top - 0.5)), fill=canvas.edge, width=2 * canvas.width)
        canvas.ellipse(x - 0.14, top - 0.66, x + 0.14, top - 0.38, (230, 60, 60))
    elif toy.ears == "horns":
        points = [at(x - sign * 0.22, top + 0.2), at(x + sign * 0.35, top - 0.42), at(x + sign * 0.2, top + 0.3)]
        canvas.polygon(points, (235, 225, 200))


def _draw_foot(canvas: _Canvas, toy: Toy, sign: int) -> None:
    foot = sign * (0.3 if toy.body == "tall" else 0.4)
    if toy.body != "arch":
        canvas.ellipse(foot - 0.24, 0.74, foot + 0.24, 1.04, _shade(canvas.body, 0.8))


def _draw_body(canvas: _Canvas, toy: Toy) -> None:
    draw, unit = canvas.draw, canvas.unit
    style = {"fill": canvas.body, "outline": canvas.edge, "width": canvas.width}
    if toy.body == "round":
        canvas.ellipse(-0.86, -0.8, 0.86, 0.92)
    elif toy.body == "square":
        draw.rounded_rectangle(canvas.box(-0.76, -0.76, 0.76, 0.9), 0.14 * unit, **style)
    elif toy.body == "tall":
        draw.rounded_rectangle(canvas.box(-0.54, -0.95, 0.54, 0.92), 0.5 * unit, **style)
    elif toy.body == "arch":
        angles = [math.pi * k / 24 for k in range(25)]
        arc = [canvas.at(0.74 * math.cos(a), -0.1 - 0.72 * math.sin(a)) for a in angles]
        hem = [canvas.at(-0.74 + 1.48 * k / 6, 1.0 if k % 2 == 0 else 0.78) for k in range(7)]
        canvas.polygon([*arc, *hem], canvas.body)
    elif toy.body == "diamond":
        canvas.polygon([canvas.at(*p) for p in ((0, -0.96), (0.9, 0), (0, 0.96), (-0.9, 0))], canvas.body)
    else:
        canvas.ellipse(-0.86, -0.28, 0.86, 0.94)
        canvas.ellipse(-0.52, -0.86, 0.52, 0.1)
        draw.ellipse(canvas.box(-0.44, -0.4, 0.44, 0.3), fill=canvas.body)


def _draw_belly(canvas: _Canvas, toy: Toy) -> None:
    draw, fill = canvas.draw, COLOURS[toy.belly_colour]
    if toy.belly == "disc":
        draw.ellipse(canvas.box(-0.34, 0.16, 0.34, 0.76), fill=fill)
    elif toy.belly == "stripes":
        for y in (0.14, 0.4, 0.66):
            draw.rectangle(canvas.box(-0.5, y, 0.5, y + 0.13), fill=fill)
    elif toy.belly == "star":
        spokes = [(0.4 if k % 2 == 0 else 0.17, math.pi * (k / 5 - 0.5)) for k in range(10)]
        draw.polygon([canvas.at(r * math.cos(a), 0.46 + r * math.sin(a)) for r, a in spokes], fill=fill)


def _draw_face(canvas: _Canvas, toy: Toy) -> None:
    draw, box, width = canvas.draw, canvas.box, canvas.width
    for sign in (-1, 1):
        x = sign * 0.27
        if toy.glasses:
            draw.ellipse(box(x - 0.24, -0.48, x + 0.24, 0.0), fill=_WHITE, outline=_DARK, width=2 * width)
        elif toy.big_eyes:
            draw.ellipse(box(x - 0.2, -0.44, x + 0.2, -0.04), fill=_WHITE)
        draw.ellipse(box(x - 0.1, -0.34, x + 0.1, -0.14), fill=_DARK)
    if toy.glasses:
        draw.line((*canvas.at(-0.06, -0.28), *canvas.at(0.06, -0.28)), fill=_DARK, width=2 * width)
    draw.arc(box(-0.16, -0.14, 0.16, 0.12), 20, 160, fill=_DARK, width=width)


def _draw_hat(canvas: _Canvas, toy: Toy) -> None:
    if toy.hat is None:
        return
    _, top = _outline(toy.body)
    hat, at = COLOURS[toy.hat], canvas.at
    brim = _shade(hat, 0.7)
    points = [at(-0.3, top + 0.02), at(0, top - 0.7), at(0.3, top + 0.02)]
    canvas.draw.polygon(points, fill=hat, outline=brim, width=canvas.width)
    canvas.draw.rounded_rectangle(canvas.box(-0.44, top - 0.04, 0.44, top + 0.14), 0.05 * canvas.unit, fill=brim)


def draw_toy(toy: Toy, pose: Pose, side: int = 64, oversample: int = 4) -> Image.Image:
    """Draw a toy as an RGB image of ``side`` x ``side`` pixels, scaled down from ``oversample`` times that side."""
    big = side * oversample
    image = Image.new("RGB", (big, big))
    draw = ImageDraw.Draw(image)
    _draw_scene(draw, pose.scene, big)
    canvas = _Canvas(draw, (pose.x * big, pose.y * big), pose.size * big, COLOURS[toy.colour])
    for sign in (-1, 1):
        _draw_ear(canvas, toy, sign)
        _draw_foot(canvas, toy, sign)
    _draw_body(canvas, toy)
    _draw_belly(canvas, toy)
    _draw_face(canvas, toy)
    _draw_hat(canvas, toy)
    if pose.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.resize((side, side), Image.Resampling.BOX) if oversample > 1 else image
