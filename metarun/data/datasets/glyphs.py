"""Glyphs: handwritten characters of generated alphabets, which need no download.

An alphabet has a stock of strokes in one style; its characters join one to four of them, as the programs of Lake et
al. (2015) do: a stroke starts, ends or crosses somewhere along an earlier one. `glyph_drawing` draws them.
"""

from contextlib import ExitStack

import numpy as np

from metarun.data.cache import RawDataset, fingerprint, load_or_build_cache
from metarun.data.datasets.glyph_drawing import SIZE, STEPS, Character, HandStyle, StrokeSet, draw
from metarun.data.formats.detect import DataPaths
from metarun.data.image_set import ImageSet, image_set
from metarun.data.image_spec import ImageSpec
from metarun.data.splits import format_sizes

VERSION = 1  # raised whenever the same seed would give other pictures: it names the cached file
SPEC = ImageSpec(SIZE, 1, inverted=True)
DRAWINGS = 20  # of each character
CHARACTERS = 25  # of each alphabet
ALPHABETS = {"train": 40, "val": 6, "test": 16}
STROKES = 4  # at most, in a character
STOCK = 9  # strokes of an alphabet
HEADINGS = {0: 0.3, 1: 0.1, 2: 0.35, 3: 0.15, 6: 0.1}  # in eighths of a circle from rightwards, clockwise: how common
KINDS = {"line": 1.2, "arc": 1.2, "ring": 0.5, "hook": 1.2, "wave": 0.5, "corner": 1.2, "zigzag": 0.3}  # how common


def load(paths: DataPaths, seed: int, spec: ImageSpec = SPEC) -> ImageSet:
    """1000/150/400 characters of 40/6/16 alphabets, 20 drawings each: uint8 [31000, 1, 28, 28], ink = 255.

    Or in another spec.

    Raises:
        UserError: cache_dir cannot be written.
    """
    names = [
        f"alphabet{a + 1:02}/character{c + 1:02}" for a in range(sum(ALPHABETS.values())) for c in range(CHARACTERS)
    ]
    bounds = np.cumsum([0, *ALPHABETS.values()]) * CHARACTERS
    parts = {part: names[begin:end] for part, begin, end in zip(ALPHABETS, bounds[:-1], bounds[1:], strict=True)}

    def contents(_: ExitStack) -> RawDataset:
        drawings = (
            255 - picture for number in range(sum(ALPHABETS.values())) for picture in draw_alphabet(seed, number)
        )
        images = ((f"glyph {i}", drawing) for i, drawing in enumerate(drawings))
        return RawDataset(names, np.repeat(np.arange(len(names)), DRAWINGS), images)

    name = f"glyphs-{VERSION}-seed{seed}" + ("" if spec == SPEC else f"-{fingerprint(spec)}")
    found = load_or_build_cache(paths.cache_dir, name, spec, f"seed {seed}", contents)
    return image_set(found, spec, parts, f"glyphs-{format_sizes(parts)}-seed{seed}")


def draw_alphabet(seed: int, number: int) -> np.ndarray:
    """Images of one alphabet, sorted by character: uint8 [CHARACTERS * DRAWINGS, SIZE, SIZE]."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
    stock = invent_strokes(rng)
    characters = select_distinct([invent_character(rng) for _ in range(4 * CHARACTERS)], stock)
    return np.concatenate([draw(character, stock, HandStyle(), rng, DRAWINGS) for character in characters])


# --- inventing ---------------------------------------------------------------------------------------------


def invent_strokes(rng: np.random.Generator) -> StrokeSet:
    """Strokes in one style: few directions, few kinds of curvature, one degree of roundness."""
    t = np.linspace(0, 1, STEPS)
    lean = rng.normal(0, 0.12)
    headings = rng.choice(list(HEADINGS), 3, replace=False, p=list(HEADINGS.values())) * np.pi / 4 + lean
    sweep = rng.uniform(0.6, 1.4)
    kinds = rng.dirichlet(list(KINDS.values())) + 0.04
    turns = np.zeros((STOCK, STEPS))
    heading, length = rng.choice(headings, STOCK), rng.uniform(0.7, 1.3, STOCK)
    for i, kind in enumerate(rng.choice(list(KINDS), STOCK, p=kinds / kinds.sum())):
        side = rng.choice([-1.0, 1.0])
        amount = side * sweep * rng.uniform(0.8, 1.25)
        if kind == "arc":
            turns[i] = amount * rng.uniform(1.0, 2.6) / STEPS
        elif kind == "ring":
            turns[i] = side * rng.uniform(1.7, 2.2) * np.pi / STEPS
        elif kind == "hook":  # at the end or at the beginning
            turned = t > 0.6 if rng.random() < 0.6 else t < 0.4
            turns[i] = amount * 2.4 * turned / turned.sum()
        elif kind == "wave":
            turns[i] = amount * 2.2 * np.pi * np.sin(2 * np.pi * t) / STEPS
        elif kind == "corner":
            turns[i, int(rng.uniform(0.35, 0.65) * STEPS)] = side * rng.uniform(0.35, 0.7) * np.pi
        elif kind == "zigzag":
            corner = side * rng.uniform(0.5, 0.8) * np.pi
            turns[i, STEPS // 3], turns[i, 2 * STEPS // 3] = corner, -corner
        if kind in ("ring", "hook", "wave"):
            length[i] *= 1.35
    return StrokeSet(heading, length, turns)


def invent_character(rng: np.random.Generator) -> Character:
    """A character of one to four strokes, each but the first joined to an earlier one."""
    n = rng.choice(np.arange(1, STROKES + 1), p=[0.05, 0.4, 0.4, 0.15])
    return Character(
        strokes=rng.integers(STOCK, size=n),
        length=np.r_[1.0, rng.choice([0.5, 0.75, 1.0], n - 1)],
        parent=np.array([0, *(rng.integers(i) for i in range(1, n))]),
        place=rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], n),
        anchor=rng.choice([0.0, 0.0, 0.5, 1.0], n),
    )


def select_distinct(candidates: list[Character], stock: StrokeSet) -> list[Character]:
    """The CHARACTERS most distinct candidates, by farthest-point selection."""
    still = HandStyle(*[0.0] * 12, pen=(1.0, 1.0))
    rng = np.random.default_rng(0)  # draws nothing that shows
    pictures = np.stack([draw(c, stock, still, rng, 1)[0] for c in candidates]).astype(np.float64) / 255
    # The half with the widest spread of ink is kept: strokes upon strokes make a blot.
    clear = np.argsort([clarity(p) for p in pictures], kind="stable")[-2 * CHARACTERS :]
    candidates, pictures = [candidates[i] for i in clear], pictures[clear]
    coarse = pictures.reshape(-1, 7, SIZE // 7, 7, SIZE // 7).mean((2, 4)).reshape(len(candidates), -1)
    taken = [len(candidates) - 1]
    nearest = np.linalg.norm(coarse - coarse[-1], axis=1)
    while len(taken) < CHARACTERS:
        taken.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(coarse - coarse[taken[-1]], axis=1))
    return [candidates[i] for i in taken]


def clarity(picture: np.ndarray) -> float:
    """Legibility score of an image [SIZE, SIZE] in [0, 1]: spread over the image with little filled area."""
    rows, columns = np.nonzero(picture > 0.5)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    return min(height, width) / max(height, width) - len(rows) / (height * width)
