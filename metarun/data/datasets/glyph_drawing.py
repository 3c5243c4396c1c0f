"""Draws characters of a generated alphabet with random variations in handwriting.

A stroke is the path of a pen: a heading, a length, and how much the pen turns at each step. Every drawing repeats its
character's strokes with other headings, lengths, turns and joints, then slants, turns, stretches, bends and moves the
whole, and has a pen of its own width. How far they depart (`HandStyle`) decides how hard the tasks are: chosen so that
5-way 1-shot is about as hard as Omniglot's without meta-training, and learnable within minutes on a processor.
"""

from dataclasses import dataclass

import numpy as np

SIZE = 28  # pixels
STEPS = 64  # of the pen in a stroke: less than a pixel each


@dataclass(frozen=True)
class StrokeSet:
    """The strokes of an alphabet."""

    heading: np.ndarray  # [STOCK] radians
    length: np.ndarray  # [STOCK] share of the character's size
    turns: np.ndarray  # [STOCK, STEPS] radians at each step


@dataclass(frozen=True)
class Character:
    """A character of n strokes: which ones, in writing order, and where each joins an earlier one."""

    strokes: np.ndarray  # [n] in the stock
    length: np.ndarray  # [n] factor
    parent: np.ndarray  # [n] the earlier stroke that it is joined to
    place: np.ndarray  # [n] where on the parent, 0 to 1
    anchor: np.ndarray  # [n] the point of its own that lies there, 0 to 1


@dataclass(frozen=True)
class HandStyle:
    """Variation of drawings of a character: standard deviations, unless a range is given."""

    heading: float = 0.05  # of a stroke, radians
    length: float = 0.05  # of a stroke, its logarithm
    turn: float = 0.05  # of a stroke's turning, as a share of it
    bend: float = 0.08  # radians that a stroke turns besides
    joint: float = 0.03  # where along the earlier stroke, as a share of it
    gap: float = 0.015  # between the two strokes, as a share of the character
    slant: float = 0.07  # horizontal shear
    rotation: float = 0.05  # radians
    scale: float = 0.08  # of the whole, its logarithm
    stretch: float = 0.05  # of width against height, its logarithm
    warp: float = 0.02  # smooth displacement, as a share of the character
    shift: float = 2.0  # pixels
    pen: tuple[float, float] = (0.7, 1.1)  # half the line's width, pixels


def draw(
    character: Character, stock: StrokeSet, hand: HandStyle, rng: np.random.Generator, drawings: int
) -> np.ndarray:
    """Images of one character: uint8 [drawings, SIZE, SIZE]."""
    points = place(transform_character(write(character, stock, hand, rng, drawings), hand, rng), hand, rng)
    return ink(subsample_points(points, len(character.strokes)), rng.uniform(*hand.pen, size=(drawings, 1)))


def write(
    character: Character, stock: StrokeSet, hand: HandStyle, rng: np.random.Generator, drawings: int
) -> np.ndarray:
    """Pen paths of all drawings: [drawings, n * STEPS, 2], in units of the character."""
    strokes, n = character.strokes, len(character.strokes)
    each = (drawings, n)
    along = np.linspace(-1, 1, STEPS)
    turns = stock.turns[strokes] * (1 + hand.turn * rng.normal(size=(*each, 1)))
    bend = hand.bend * (rng.normal(size=(*each, 1)) + along * rng.normal(size=(*each, 1)))
    heading = stock.heading[strokes] + hand.heading * rng.normal(size=each)
    # A bend or an altered turn changes a stroke about its middle, not only its end.
    angle = np.cumsum(turns + bend / STEPS, axis=2) - bend / 2
    angle += heading[..., None] - (turns - stock.turns[strokes]).sum(2, keepdims=True) / 2
    length = stock.length[strokes] * character.length * np.exp(hand.length * rng.normal(size=each))
    path = np.cumsum(np.stack([np.cos(angle), np.sin(angle)], axis=3), axis=2) * (length / STEPS)[..., None, None]
    position = character.place + hand.joint * rng.normal(size=each)
    position = (np.clip(position, 0, 1) * (STEPS - 1)).round().astype(int)
    gap = hand.gap * rng.normal(size=(*each, 2))
    rows = np.arange(drawings)
    for i in range(n):
        own = path[:, i, round(character.anchor[i] * (STEPS - 1))]
        parent = character.parent[i]
        there = path[rows, parent, position[:, i]] + gap[:, i] if i else 0
        path[:, i] += (there - own)[:, None]
    return path.reshape(drawings, n * STEPS, 2)


def transform_character(points: np.ndarray, hand: HandStyle, rng: np.random.Generator) -> np.ndarray:
    """Normalise each drawing to unit size about 0, then slant, rotate, stretch and bend it; the shape stays."""
    drawings = len(points)
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    points = (points - (low + high) / 2) / (high - low).max(2, keepdims=True)
    wave = rng.normal(size=(drawings, 1, 2, 2))
    phase = rng.uniform(0, 2 * np.pi, (drawings, 1, 2))
    points = points + hand.warp * np.sin(2.5 * (points @ wave[:, 0]) + phase)
    slant, rotation, stretch = rng.normal(size=(3, drawings, 1)) * [[[hand.slant]], [[hand.rotation]], [[hand.stretch]]]
    x, y = points[..., 0] * np.exp(stretch), points[..., 1] * np.exp(-stretch)
    x = x + slant * y
    cos, sin = np.cos(rotation), np.sin(rotation)
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=2)


def place(points: np.ndarray, hand: HandStyle, rng: np.random.Generator) -> np.ndarray:
    """Scale to pixels and shift at random within the image; the shape stays."""
    drawings = len(points)
    points = points * (19 * np.exp(hand.scale * rng.normal(size=(drawings, 1, 1))))
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    shrink = np.minimum(1, (SIZE - 4) / (high - low).max(2, keepdims=True))
    room = np.maximum(SIZE - 4 - shrink * (high - low), 0) / 2
    shift = np.clip(hand.shift * rng.normal(size=(drawings, 1, 2)), -room, room)
    return (points - (low + high) / 2) * shrink + shift + (SIZE - 1) / 2


def subsample_points(points: np.ndarray, strokes: int) -> np.ndarray:
    """Drop points that the image does not need: remaining ones are within 0.8 pixels of the next."""
    kept = []
    for stroke in np.split(points, strokes, axis=1):
        step = np.linalg.norm(np.diff(stroke, axis=1), axis=2).max()
        kept.append(stroke[:, :: max(1, int(0.8 / step))])
    return np.concatenate(kept, axis=1)


def ink(points: np.ndarray, pen: np.ndarray) -> np.ndarray:
    """Images with ink along `points` [drawings, points, 2]: 255 within distance `pen`, fading over one pixel.

    pen: [drawings, 1], up to 1.1. Returns uint8 [drawings, SIZE, SIZE].
    """
    reach = np.arange(-2, 3)  # each point inks the 5x5 pixels about it
    nearest = points.round().astype(np.int32)
    offset = points - nearest
    dx = (reach - offset[..., 0, None])[:, :, None, :].astype(np.float32)  # [drawings, points, 1, 5]
    dy = (reach - offset[..., 1, None])[:, :, :, None].astype(np.float32)  # [drawings, points, 5, 1]
    dark = np.clip(pen[..., None, None].astype(np.float32) + 0.5 - np.sqrt(dx * dx + dy * dy), 0, 1)
    # A border of two pixels takes what falls off the edge.
    wide = SIZE + 4
    picture = np.zeros(len(points) * wide * wide, np.float32)
    x = (nearest[..., 0] + 2)[..., None, None] + reach
    y = (nearest[..., 1] + 2)[..., None, None] + reach[:, None]
    index = (np.arange(len(points))[:, None, None, None] * wide + y) * wide + x
    np.maximum.at(picture, index.ravel(), dark.ravel())
    return (picture.reshape(-1, wide, wide)[:, 2:-2, 2:-2] * 255).round().astype(np.uint8)
