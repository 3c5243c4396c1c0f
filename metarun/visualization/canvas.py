"""Pictures for TensorBoard, by Pillow: matplotlib takes half a second to load and a tenth for each, this a hundredth.

All are drawn twice as large as they become, so that lines and letters are smooth.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
WHITE, BLACK, GREY, LIGHT = (255, 255, 255), (20, 20, 20), (110, 110, 110), (225, 225, 225)
GREEN, PALE_GREEN, RED, BLUE, ORANGE = (26, 150, 65), (130, 210, 140), (215, 25, 28), (31, 119, 180), (230, 126, 20)
LETTERS = 12  # pixels, their height
TWICE = 2


class Curve(NamedTuple):
    """One line of a plot, or points where `dots` says so."""

    name: str
    x: np.ndarray
    y: np.ndarray  # what is not finite is left out
    colour: Colour
    width: int = 2
    band: np.ndarray | None = None  # half of an interval about y
    dots: bool = False


class Frame(NamedTuple):
    """The box of a plot in a picture of WIDTH x HEIGHT, and the values at its edges."""

    x: tuple[float, float]
    y: tuple[float, float]


WIDTH, HEIGHT = 420, 300  # pixels: TensorBoard shows about 330 across
BOX = (40, 44, 304, 258)  # left, top, right, bottom of a plot within it; the legend stands to the right


class Canvas:
    """A white picture that is drawn on in its own pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (TWICE * width, TWICE * height), WHITE)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, anchor: str = "lm", colour: Colour = BLACK, size: int = LETTERS):
        self.draw.text((TWICE * x, TWICE * y), words, fill=colour, anchor=anchor, font=font(TWICE * size))

    def box(self, corners: tuple[float, float, float, float], colour: Colour, width: int) -> None:
        self.draw.rectangle([TWICE * place for place in corners], outline=colour, width=TWICE * width)

    def fill(self, corners: tuple[float, float, float, float], colour: Colour) -> None:
        self.draw.rectangle([TWICE * place for place in corners], fill=colour)

    def paste(self, image: Image.Image, x: int, y: int, size: int) -> None:
        """A picture, brought to a square of `size` pixels; a smaller one keeps its pixels."""
        side = TWICE * size
        how = Image.Resampling.NEAREST if image.width < side else Image.Resampling.BOX
        self.image.paste(image.resize((side, side), how), (TWICE * x, TWICE * y))

    def png(self, colours: int | None = None) -> bytes:
        """In its true size; with that many `colours`, which are enough for lines, it takes a third of the time."""
        image, file = self.image.reduce(TWICE), io.BytesIO()
        if colours is not None:
            image = image.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        image.save(file, "PNG")
        return file.getvalue()


@cache
def font(size: int) -> Any:
    return ImageFont.load_default(size)


def plot(title: str, x_label: str, curves: list[Curve], y: tuple[float, float], ticks: list[float]) -> bytes:
    """A PNG of curves over x, with a legend to the right; what lies outside the range `y` is cut off.

    Args:
        title: of two lines at most.
        ticks: the values of x that are written below; the outermost are the range of x, unless curves go further.
    """
    edges = [*ticks, *(float(end) for curve in curves for end in (curve.x.min(), curve.x.max()))]
    margin = 0.04 * ((max(edges) - min(edges)) or 1)
    frame = Frame((min(edges) - margin, max(edges) + margin), y)
    paper = Canvas(WIDTH, HEIGHT)
    for number, line in enumerate(title.split("\n")):
        paper.text(8, 12 + 18 * number, line)
    paper.text((BOX[0] + BOX[2]) / 2, HEIGHT - 12, x_label, "mm", GREY)
    inside = Image.new("RGB", (TWICE * (BOX[2] - BOX[0]), TWICE * (BOX[3] - BOX[1])), WHITE)
    draw = ImageDraw.Draw(inside)
    for value in round_values(*y):
        height = to_pixels(frame, inside, 0, value)[1]
        draw.line([(0, height), (inside.width, height)], fill=LIGHT, width=TWICE)
        paper.text(BOX[0] - 8, BOX[1] + height / TWICE, f"{value:g}", "rm", GREY)
    for value in ticks:
        across = to_pixels(frame, inside, value, 0)[0]
        paper.text(BOX[0] + across / TWICE, BOX[3] + 12, f"{value:g}", "mm", GREY)
    for curve in curves:
        draw_band(draw, frame, inside, curve)
    for curve in curves:
        draw_curve(draw, frame, inside, curve)
    paper.image.paste(inside, (TWICE * BOX[0], TWICE * BOX[1]))
    paper.box(BOX, GREY, 1)
    for number, curve in enumerate(curves):
        legend(paper, BOX[1] + 12 + 18 * number, curve)
    return paper.png(colours=128)


def draw_band(draw: ImageDraw.ImageDraw, frame: Frame, inside: Image.Image, curve: Curve) -> None:
    """Draw a curve's interval into the box."""
    seen = np.isfinite(curve.y)
    if curve.band is None or seen.sum() < 2:
        return
    x, y, half = curve.x[seen], curve.y[seen], np.nan_to_num(curve.band[seen])
    around = np.concatenate([y + half, (y - half)[::-1]]).clip(*clip_range(frame.y))
    edge = zip([*x.tolist(), *x[::-1].tolist()], around.tolist(), strict=True)
    draw.polygon([to_pixels(frame, inside, *point) for point in edge], fill=blend(WHITE, curve.colour, 0.2))


def draw_curve(draw: ImageDraw.ImageDraw, frame: Frame, inside: Image.Image, curve: Curve) -> None:
    """Draw a curve into the box."""
    seen = np.isfinite(curve.y)
    x, y = curve.x[seen], np.clip(curve.y[seen], *clip_range(frame.y))
    points = [to_pixels(frame, inside, *point) for point in zip(x.tolist(), y.tolist(), strict=True)]
    if not curve.dots:
        draw.line(points, fill=curve.colour, width=TWICE * curve.width, joint="curve")
    if curve.dots or curve.band is not None:
        for across, down in points:
            dot(draw, across, down, curve.colour)


def to_pixels(frame: Frame, inside: Image.Image, x: float, y: float) -> tuple[float, float]:
    """Where values lie in the box, in its pixels."""
    across = (x - frame.x[0]) / (frame.x[1] - frame.x[0])
    up = (y - frame.y[0]) / (frame.y[1] - frame.y[0])
    return across * inside.width, (1 - up) * inside.height


def clip_range(y: tuple[float, float]) -> tuple[float, float]:
    """A range that no eye tells from the endless, and Pillow can draw."""
    span = y[1] - y[0]
    return y[0] - span, y[1] + span


def dot(draw: ImageDraw.ImageDraw, x: float, y: float, colour: Colour) -> None:
    radius = 4 * TWICE
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline=WHITE, width=TWICE)


def legend(paper: Canvas, y: float, curve: Curve) -> None:
    x = BOX[2] + 8
    if curve.dots:
        dot(paper.draw, TWICE * (x + 7), TWICE * y, curve.colour)
    else:
        ends = [(TWICE * x, TWICE * y), (TWICE * (x + 14), TWICE * y)]
        paper.draw.line(ends, fill=curve.colour, width=TWICE * curve.width)
    paper.text(x + 20, y, curve.name)


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """The colour that lies at `share` of the way from one to the other."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue


def round_values(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], `most` or fewer."""
    power = 10.0 ** np.floor(np.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(number * step, 12) for number in range(first, last + 1)]
