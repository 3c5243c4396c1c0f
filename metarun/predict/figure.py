"""The picture of a prediction: the support pictures of each class, and the query pictures with their labels."""

import io
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from metarun.data.image_spec import to_8bit_opaque
from metarun.predict.labelled_images import LabelledImages
from metarun.utils.fonts import drawable, families
from metarun.utils.safe_files import open_picture

ROWS = 20  # classes that have a row of support pictures each; of more classes one picture each is shown
CLASSES, SHOTS, QUERIES = 400, 8, 40  # shown at most; queries: one of each class, if those are more
COLUMNS = 8  # of pictures, beside a column of names
CELL = 1.25  # inches, width of a column
HEADING, ROW, MARGIN = 0.4, 1.15, 0.12  # in cells: height of a heading and of a row, space around a picture
NAME_LENGTH = 17  # letters of a name above or below a picture
THUMBNAIL = 160  # pixels
RIGHT, WRONG, UNKNOWN = "#1a9641", "#d7191c", "#bbbbbb"


class Cell(NamedTuple):
    file: Path
    caption: str = ""
    frame: str = UNKNOWN


Row = tuple[str, Sequence[Cell]]  # a name and pictures beside it, or a heading if there are no pictures


def prediction_figure(
    classes: Sequence[str], support: LabelledImages, query: LabelledImages, probabilities: np.ndarray, title: str
) -> bytes:
    """A PNG with a row of support pictures for each class, then query pictures with their class and probability.

    The frame of a query of known class is green if its label is right, and red if it is wrong.

    Args:
        probabilities: [queries, classes].
    """
    num_classes = min(len(classes), CLASSES)
    rows: list[Row] = [(f"{drawable(title)}: learned from {with_total(num_classes, len(classes), 'classes')}", [])]
    names = [short(name) for name in classes]
    files: list[list[Path]] = [[] for _ in classes]
    for file, label in zip(support.files, support.labels, strict=True):
        if label is not None:
            files[label].append(file)
    if num_classes > ROWS:
        rows += in_rows([Cell(files[label][0], names[label]) for label in range(num_classes)])
    else:
        for name, paths in zip(names, files, strict=True):
            total = f"\n{SHOTS} of {len(paths)}" if len(paths) > SHOTS else ""
            rows.append((name + total, [Cell(path) for path in paths[:SHOTS]]))
    indices = select_queries(query, probabilities, max(QUERIES, num_classes))
    rows.append((f"labelled: {with_total(len(indices), len(query.files), 'pictures')}", []))
    cells = []
    for index in indices:
        label, truth = int(probabilities[index].argmax()), query.labels[index]
        frame = UNKNOWN if truth is None else RIGHT if truth == label else WRONG
        caption = f"{names[label]}\n{100 * probabilities[index, label]:.0f} %"
        other = f"\nis {names[truth]}" if truth is not None and truth != label else ""
        cells.append(Cell(query.files[index], caption + other, frame))
    return draw(rows + in_rows(cells))


def select_queries(query: LabelledImages, probabilities: np.ndarray, most: int) -> list[int]:
    """Indices of at most `most` queries, in order: equally many of each true class, or predicted class if unknown."""
    counts: dict[int, int] = {}
    ranked = []
    for index, truth in enumerate(query.labels):
        label = int(probabilities[index].argmax()) if truth is None else truth
        counts[label] = counts.get(label, 0) + 1
        ranked.append((counts[label], label, index))
    return sorted(index for _, _, index in sorted(ranked)[:most])


def in_rows(cells: Sequence[Cell]) -> list[Row]:
    return [("", cells[first : first + COLUMNS]) for first in range(0, len(cells), COLUMNS)]


def with_total(shown: int, total: int, noun: str) -> str:
    return f"{total} {noun}" if shown == total else f"{total} {noun}, {shown} shown"


def short(name: str) -> str:
    """The beginning and the end of a name, at most NAME_LENGTH letters; no escape is cut in two."""
    letters = [drawable(letter) for letter in name]
    if len("".join(letters)) <= NAME_LENGTH:
        return "".join(letters)
    half = (NAME_LENGTH - 1) // 2
    first, last = (sum(end <= half for end in accumulate(map(len, part))) for part in (letters, reversed(letters)))
    return "".join([*letters[:first], "…", *letters[len(letters) - last :]])


def draw(rows: Sequence[Row]) -> bytes:
    """Draw rows below one another. A caption of up to three lines is above its picture, the file's name below."""
    cells = [cell for _, row in rows for cell in row]
    texts = [*(words for words, _ in rows), *(cell.caption for cell in cells), *(cell.file.name for cell in cells)]
    heights = [ROW if row else HEADING for _, row in rows]
    width, total = COLUMNS + 1, sum(heights)
    figure = Figure((width * CELL, total * CELL))
    style = {"fontfamily": families(texts), "parse_math": False}
    for (words, row), bottom, height in zip(rows, accumulate(heights), heights, strict=True):
        size, middle = 8 if row else 12, 1 - (bottom - height / 2) / total
        figure.text(MARGIN / width, middle, words, fontsize=size, verticalalignment="center", **style)
        for column, cell in enumerate(row):
            left, foot = (1 + column + MARGIN / 2) / width, 1 - (bottom - 1.5 * MARGIN) / total
            axes = figure.add_axes((left, foot, (1 - MARGIN) / width, (height - 4 * MARGIN) / total))
            axes.imshow(thumbnail(cell.file))
            axes.set(xticks=[], yticks=[])
            axes.set_title(cell.caption, fontsize=6, pad=4, **style)
            axes.set_xlabel(short(cell.file.name), fontsize=5, labelpad=3, **style)
            axes.spines[:].set(color=cell.frame, linewidth=1 if cell.frame == UNKNOWN else 3)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def thumbnail(path: Path) -> Image.Image:
    with open_picture(path) as image:
        picture = to_8bit_opaque(ImageOps.exif_transpose(image)).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture
