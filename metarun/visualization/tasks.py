"""What a validation looks like: images with what was right and wrong, fits of curves, the metric by inner step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from metarun.engine.eval_result import EvalResult, ci95_halfwidth
from metarun.metrics import METRIC_BY_NAME
from metarun.types import Task
from metarun.visualization.canvas import (
    BLUE,
    GREEN,
    GREY,
    LETTERS,
    ORANGE,
    PALE_GREEN,
    RED,
    WHITE,
    WIDTH,
    Canvas,
    Colour,
    Curve,
    blend,
    plot,
    round_values,
)

CLASSES, SHOTS, QUERIES = 10, 3, 5  # of a task, shown at most
CELL, GAP = 42, 7  # pixels, of an image and to the next
LEFT, TOP, BETWEEN = 56, 68, 12  # pixels, before and above the images, and between support and query
BADGE = 14  # pixels, of the number of a class in the corner of an image
FIRST_FIT, LAST_FIT = (190, 212, 238), (8, 48, 120)  # colours, of the fits before and after the inner loop
COLOURS = (BLUE, ORANGE)


def classification_grid(title: str, task: Task, found: Tensor) -> bytes:
    """A PNG: a row for each class, its support images, then its query images, framed green (right) or red (wrong).

    Args:
        task: whose data are images as people see them, uint8 [images, channels, height, width].
        found: [queries] the classes that the network chose.
    """
    ways = int(task.support_target.max()) + 1
    rows = min(ways, CLASSES)
    all_shots, all_queries = len(task.support_target) // ways, len(task.query_target) // ways
    shots = min(SHOTS, all_shots)
    queries = min(QUERIES, all_queries)
    query_left = LEFT + shots * (CELL + GAP) + BETWEEN
    right = int((found == task.query_target).sum())
    paper = Canvas(max(query_left + queries * (CELL + GAP), WIDTH), TOP + rows * (CELL + GAP))
    paper.text(8, 12, f"{title}: {right} of {len(found)} queries right")
    paper.text(8, 30, "green: right; red: wrong, with the number of the class found", colour=GREY)
    paper.text(LEFT, 52, heading("support", shots, all_shots))
    paper.text(query_left, 52, heading("query", queries, all_queries))
    for label in range(rows):
        y = TOP + label * (CELL + GAP)
        paper.text(8, y + CELL / 2, f"class {label}")
        for column, number in enumerate((task.support_target == label).nonzero().flatten()[:shots].tolist()):
            one_image(paper, LEFT + column * (CELL + GAP), y, task.support_data[number], None, GREY)
        for column, number in enumerate((task.query_target == label).nonzero().flatten()[:queries].tolist()):
            chosen = int(found[number])
            colour = GREEN if chosen == label else RED
            one_image(paper, query_left + column * (CELL + GAP), y, task.query_data[number], chosen, colour)
    return paper.png()


def heading(name: str, shown: int, count: int) -> str:
    """How many images of each class are shown, where there are more."""
    return name if shown == count else f"{name} ({shown} of {count})"


def one_image(paper: Canvas, x: int, y: int, pixels: Tensor, chosen: int | None, frame: Colour) -> None:
    """An image in its frame, with the class that was found in a corner."""
    array = pixels.movedim(0, -1).numpy()
    paper.paste(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), x, y, CELL)
    paper.box((x - 2, y - 2, x + CELL + 1.5, y + CELL + 1.5), frame, 1 if chosen is None else 3)
    if chosen is not None:
        paper.fill((x + CELL + 1.5 - BADGE, y - 2, x + CELL + 1.5, y - 2 + BADGE), frame)
        paper.text(x + CELL + 1.5 - BADGE / 2, y - 2 + BADGE / 2, f"{chosen}", "mm", WHITE, LETTERS - 1)


def regression_plot(title: str, task: Task, outputs: Tensor, steps: Sequence[int]) -> bytes:
    """A PNG: the true curve, the support points, and the network's curve after each of the steps.

    Args:
        task: [points, 1] each; the query set is the true curve.
        outputs: [steps, query points, 1].
    """
    x, order = task.query_data[:, 0].sort()
    true = task.query_target[order, 0].numpy()
    errors = (outputs - task.query_target).square().mean((1, 2)).tolist()
    span = max(float(true.max() - true.min()), 1.0)
    colours = [blend(FIRST_FIT, LAST_FIT, number / max(len(steps) - 1, 1)) for number in range(len(steps))]
    drawn = [
        Curve(f"after {step}", x.numpy(), one[order, 0].numpy(), colour)
        for step, one, colour in zip(steps, outputs, colours, strict=True)
    ]
    curves = [
        Curve("true curve", x.numpy(), true, PALE_GREEN, width=7),
        *drawn,
        Curve("support", task.support_data[:, 0].numpy(), task.support_target[:, 0].numpy(), RED, dots=True),
    ]
    words = f"{title}\nsquared error {errors[0]:.3g} before, {errors[-1]:.3g} after {steps[-1]} inner steps"
    middle = float(true.max() + true.min()) / 2
    return plot(words, "input", curves, (middle - 0.8 * span, middle + 0.8 * span), [-4.0, -2.0, 0.0, 2.0, 4.0])


def metric_by_step(title: str, judged: dict[str, EvalResult]) -> bytes:
    """A PNG: the mean metric against inner steps, with its 95 % interval, a curve for each evaluation."""
    curves = []
    for (name, found), colour in zip(judged.items(), COLOURS, strict=False):
        x = np.arange(found.values.shape[1], dtype=float)
        curves.append(Curve(name, x, found.values.mean(0).numpy(), colour, band=ci95_halfwidth(found.values).numpy()))
    metric = next(iter(judged.values())).metric
    ends = np.concatenate([curve.y + curve.band for curve in curves if curve.band is not None])
    highest = max(ends[np.isfinite(ends)], default=1.0)
    top = METRIC_BY_NAME[metric].upper_bound or float(1.05 * highest) or 1.0
    longest = max(found.steps for found in judged.values())
    ticks = [value for value in round_values(0, max(longest, 1), 10) if value == round(value)]
    return plot(f"{metric} {title}", "inner steps", curves, (0.0, top), ticks)
