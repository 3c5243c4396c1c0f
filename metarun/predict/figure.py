"""What a prediction looks like: the pictures it learned from, class by class, and those it labelled."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import ImageOps

from metarun.data.image_spec import to_8bit_opaque
from metarun.predict.labelled_images import LabelledImages
from metarun.utils.fonts import drawable, families
from metarun.utils.safe_files import open_picture

ROWS = 20  # classes that have a row of support pictures each; of more classes one picture each is shown
CLASSES, SHOTS, QUERIES = 400, 8, 40  # shown at most; queries: one of each class, if those are more
COLUMNS = 8
CELL = 1.25  # inches, of a picture with its words
HEADING = 0.4  # cells
MARGIN = 0.12  # of a cell, between pictures
ROW = 1.15  # cells, of a row of pictures with the names of their files
LETTERS = 17  # of a name that stands above a picture
THUMBNAIL = 160  # pixels
RIGHT, WRONG, UNKNOWN = "#1a9641", "#d7191c", "#bbbbbb"


def prediction_figure(
    classes: Sequence[str], support: LabelledImages, query: LabelledImages, probabilities: np.ndarray, title: str
) -> bytes:
    """A PNG: a row of support pictures for each class, then query pictures with their class and probability.

    A frame is green where a query's class is known and found, red where another was found.

    Args:
        probabilities: [queries, classes].
    """
    shown = min(len(classes), CLASSES)
    rows = shown if shown <= ROWS else -(-shown // COLUMNS)
    queries = of_each_class(query, probabilities, max(QUERIES, shown))
    texts = [*classes, *(file.name for file in (*support.files, *query.files)), title]
    page = Page([HEADING, *[ROW] * rows, HEADING, *[ROW] * -(-len(queries) // COLUMNS)], texts)
    page.heading(0, f"{title}: learned from {counted(shown, len(classes), 'classes')}")
    for label in range(shown):
        files = support.of(label)
        if shown > ROWS:
            page.picture(1 + label // COLUMNS, label % COLUMNS, files[0], short(classes[label]), UNKNOWN)
            continue
        page.name(1 + label, classes[label], len(files))
        for column, file in enumerate(files[:SHOTS]):
            page.picture(1 + label, column, file, "", UNKNOWN)
    page.heading(rows + 1, f"labelled: {counted(len(queries), len(query.files), 'pictures')}")
    for place, number in enumerate(queries):
        found, known = int(probabilities[number].argmax()), query.labels[number]
        words = f"{short(classes[found])}\n{100 * probabilities[number, found]:.0f} %"
        if known is not None and known != found:
            words += f"\nis {short(classes[known])}"
        frame = UNKNOWN if known is None else RIGHT if known == found else WRONG
        page.picture(rows + 2 + place // COLUMNS, place % COLUMNS, query.files[number], words, frame)
    return page.png()


def of_each_class(query: LabelledImages, probabilities: np.ndarray, most: int) -> list[int]:
    """Numbers of at most `most` queries, in order: as many of each class, the true one or else the one found."""
    turns: dict[int, int] = {}
    ranked = []
    for number, known in enumerate(query.labels):
        label = int(probabilities[number].argmax()) if known is None else known
        turns[label] = turns.get(label, 0) + 1
        ranked.append((turns[label], label, number))
    return sorted(number for _, _, number in sorted(ranked)[:most])


def counted(shown: int, all_of_them: int, what: str) -> str:
    return f"{all_of_them} {what}" if shown == all_of_them else f"{all_of_them} {what}, {shown} shown"


def short(name: str) -> str:
    """A name that fits above a picture: its beginning and its end, where names of a kind differ."""
    letters = [drawable(letter) for letter in name]
    if len("".join(letters)) <= LETTERS:
        return "".join(letters)
    half = (LETTERS - 1) // 2
    ends = list(accumulate(map(len, letters))), list(accumulate(map(len, reversed(letters))))
    first, last = (sum(end <= half for end in sizes) for sizes in ends)
    return "".join([*letters[:first], "…", *letters[len(letters) - last :]])


class Page:
    """Rows of cells, whose heights are given in cells; the first column holds names."""

    def __init__(self, heights: Sequence[float], texts: Sequence[str]) -> None:
        """`texts`: all names that will stand on it, for which it takes its fonts."""
        self.heights, self.columns, self.fonts = heights, COLUMNS + 1, families(texts)
        self.figure = Figure((self.columns * CELL, sum(heights) * CELL))
        self.canvas = FigureCanvasAgg(self.figure)

    def height(self, row: int, down: float) -> float:
        """Of the point `down` cells below the top of a row, as a fraction of the page from its foot."""
        return 1 - (sum(self.heights[:row]) + down) / sum(self.heights)

    def heading(self, row: int, words: str) -> None:
        self.words(row, HEADING / 2, drawable(words), 12)

    def name(self, row: int, words: str, count: int) -> None:
        """Of a class, and how many pictures it has, where not all are shown."""
        more = f"\n{SHOTS} of {count}" if count > SHOTS else ""
        self.words(row, 0.6, short(words) + more, 8)

    def words(self, row: int, down: float, words: str, size: int) -> None:
        place = (MARGIN / self.columns, self.height(row, down))
        self.figure.text(
            *place, words, fontsize=size, fontfamily=self.fonts, verticalalignment="center", parse_math=False
        )

    def picture(self, row: int, column: int, file: Path, words: str, frame: str) -> None:
        """Words stand above it, in up to three lines, and its file's name below."""
        foot, top = self.height(row, self.heights[row] - 1.5 * MARGIN), self.height(row, 2 * MARGIN)
        axes = self.figure.add_axes(
            ((1 + column + MARGIN / 2) / self.columns, foot, (1 - MARGIN) / self.columns, top - foot)
        )
        axes.imshow(thumbnail(file))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(words, fontsize=6, fontfamily=self.fonts, pad=2, parse_math=False)
        axes.set_xlabel(short(file.name), fontsize=5, fontfamily=self.fonts, labelpad=2, parse_math=False)
        for spine in axes.spines.values():
            spine.set(color=frame, linewidth=1 if frame == UNKNOWN else 3)

    def png(self) -> bytes:
        file = io.BytesIO()
        self.canvas.print_png(file)
        return file.getvalue()


def thumbnail(file: Path) -> np.ndarray:
    """uint8 [height, width, 3], of the picture as it is."""
    with open_picture(file) as opened:
        picture = to_8bit_opaque(ImageOps.exif_transpose(opened)).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)
