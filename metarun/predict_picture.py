"""What a prediction looks like: the pictures it learned from, class by class, and those it labelled."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import ImageOps

from metarun.data.look import plain
from metarun.own_pictures import Pictures
from metarun.utils.safe_files import open_picture
from metarun.utils.text import printable

CLASSES, SHOTS, QUERIES = 20, 8, 40  # shown at most
COLUMNS = 8
CELL = 1.25  # inches, of a picture with its words
HEADING = 0.4  # cells
MARGIN = 0.12  # of a cell, between pictures
LETTERS = 17  # of a name that stands above a picture
THUMBNAIL = 160  # pixels
RIGHT, WRONG, UNKNOWN = "#1a9641", "#d7191c", "#bbbbbb"


def draw(classes: Sequence[str], support: Pictures, query: Pictures, probabilities: np.ndarray, title: str) -> bytes:
    """A PNG: a row of support pictures for each class, then query pictures with their class and probability.

    A frame is green where a query's class is known and found, red where another was found.

    Args:
        probabilities: [queries, classes].
    """
    rows = min(len(classes), CLASSES)
    shown = min(len(query.files), QUERIES)
    page = Page([HEADING, *[1] * rows, HEADING, *[1] * -(-shown // COLUMNS)])
    page.heading(0, f"{title}: learned from {counted(rows, len(classes), 'classes')}")
    for label in range(rows):
        page.name(1 + label, classes[label])
        for column, file in enumerate(support.of(label)[:SHOTS]):
            page.picture(1 + label, column, file, "", UNKNOWN)
    page.heading(rows + 1, f"labelled: {counted(shown, len(query.files), 'pictures')}")
    for number in range(shown):
        found, known = int(probabilities[number].argmax()), query.labels[number]
        words = f"{short(classes[found])}\n{100 * probabilities[number, found]:.0f} %"
        if known is not None and known != found:
            words += f"\nis {short(classes[known])}"
        frame = UNKNOWN if known is None else RIGHT if known == found else WRONG
        page.picture(rows + 2 + number // COLUMNS, number % COLUMNS, query.files[number], words, frame)
    return page.png()


def counted(shown: int, all_of_them: int, what: str) -> str:
    return f"{all_of_them} {what}" if shown == all_of_them else f"{all_of_them} {what}, {shown} shown"


def short(name: str) -> str:
    """A name that fits above a picture: its beginning and its end, where names of a kind differ."""
    half = (LETTERS - 1) // 2
    return printable(name if len(name) <= LETTERS else f"{name[:half]}…{name[-half:]}")


class Page:
    """Rows of cells, whose heights are given in cells; the first column holds names."""

    def __init__(self, heights: Sequence[float]) -> None:
        self.heights, self.columns = heights, COLUMNS + 1
        self.figure = Figure((self.columns * CELL, sum(heights) * CELL))
        self.canvas = FigureCanvasAgg(self.figure)

    def height(self, row: int, down: float) -> float:
        """Of the point `down` cells below the top of a row, as a fraction of the page from its foot."""
        return 1 - (sum(self.heights[:row]) + down) / sum(self.heights)

    def heading(self, row: int, words: str) -> None:
        self.words(row, HEADING / 2, words, 12)

    def name(self, row: int, words: str) -> None:
        self.words(row, 0.6, short(words), 8)

    def words(self, row: int, down: float, words: str, size: int) -> None:
        place = (MARGIN / self.columns, self.height(row, down))
        self.figure.text(*place, words, fontsize=size, verticalalignment="center", parse_math=False)

    def picture(self, row: int, column: int, file: Path, words: str, frame: str) -> None:
        """Words stand above it, in up to three lines."""
        foot, top = self.height(row, 1 - MARGIN / 2), self.height(row, 2 * MARGIN)
        axes = self.figure.add_axes(
            ((1 + column + MARGIN / 2) / self.columns, foot, (1 - MARGIN) / self.columns, top - foot)
        )
        axes.imshow(thumbnail(file))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(words, fontsize=6, pad=2, parse_math=False)
        for spine in axes.spines.values():
            spine.set(color=frame, linewidth=1 if frame == UNKNOWN else 3)

    def png(self) -> bytes:
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # of a script that the font has not
            self.canvas.print_png(file)
        return file.getvalue()


def thumbnail(file: Path) -> np.ndarray:
    """uint8 [height, width, 3], of the picture as it is."""
    with open_picture(file) as opened:
        picture = plain(ImageOps.exif_transpose(opened)).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)
