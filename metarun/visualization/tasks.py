"""PNG pictures of a validation: task images with the predicted classes, fits of curves, the metric by inner step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from metarun.engine.eval_result import EvalResult, ci95_halfwidth
from metarun.metrics import METRIC_BY_NAME
from metarun.types import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN, PALE_GREEN, RED, GREY = (26, 150, 65), (130, 210, 140), (215, 25, 28), (110, 110, 110)
COLOURS = ("tab:blue", "tab:orange")
CLASSES, SHOTS, QUERIES = 10, 3, 5  # of a task, shown at most
CELL, PITCH = 84, 98  # side of an image, and distance to the next, in pixels of a picture that is halved at the end
LEFT, TOP, BETWEEN = 112, 136, 24  # margins before and above the images, and between support and query
BADGE = 28  # side of the square with the predicted class
WIDTH, HEIGHT, DPI = 420, 300, 100  # of a plot, in pixels; TensorBoard shows about 330 across


def classification_grid(title: str, task: Task, predictions: Tensor) -> bytes:
    """A row for each class: its support images, then its query images, framed green (correct) or red (wrong).

    Args:
        task: its data are uint8 [images, channels, height, width].
        predictions: [queries], the predicted classes.
    """
    ways = int(task.support_target.max()) + 1
    rows = min(ways, CLASSES)
    num_shots, num_queries = (len(target) // ways for target in (task.support_target, task.query_target))
    query_left = LEFT + min(SHOTS, num_shots) * PITCH + BETWEEN
    width = max(query_left + min(QUERIES, num_queries) * PITCH, 2 * WIDTH)
    canvas = Image.new("RGB", (width, TOP + rows * PITCH), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(24)
    correct = int((predictions == task.query_target).sum())
    for x, y, words, colour in (
        (16, 24, f"{title}: {correct} of {len(predictions)} queries right", "black"),
        (16, 60, "green: right; red: wrong, with the number of the class found", GREY),
        (LEFT, 104, "support" + (f" ({SHOTS} of {num_shots})" if num_shots > SHOTS else ""), "black"),
        (query_left, 104, "query" + (f" ({QUERIES} of {num_queries})" if num_queries > QUERIES else ""), "black"),
        *((16, TOP + row * PITCH + CELL // 2, f"class {row}", "black") for row in range(rows)),
    ):
        draw.text((x, y), words, colour, font, anchor="lm")
    for left, most, data, target in (
        (LEFT, SHOTS, task.support_data, task.support_target),
        (query_left, QUERIES, task.query_data, task.query_target),
    ):
        for row in range(rows):
            for column, index in enumerate((target == row).nonzero().flatten()[:most].tolist()):
                x, y = left + column * PITCH, TOP + row * PITCH
                pixels = data[index].movedim(0, -1).numpy()
                image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
                resampling = Image.Resampling.NEAREST if image.width < CELL else Image.Resampling.BOX
                canvas.paste(image.resize((CELL, CELL), resampling), (x, y))
                frame = (x - 4, y - 4, x + CELL + 3, y + CELL + 3)
                if data is task.support_data:
                    draw.rectangle(frame, outline=GREY, width=2)
                    continue
                colour = GREEN if predictions[index] == row else RED
                draw.rectangle(frame, outline=colour, width=6)
                draw.rectangle((frame[2] - BADGE, frame[1], frame[2], frame[1] + BADGE), colour)
                centre = (frame[2] - BADGE // 2, frame[1] + BADGE // 2)
                draw.text(centre, str(int(predictions[index])), "white", ImageFont.load_default(22), anchor="mm")
    file = io.BytesIO()
    canvas.reduce(2).save(file, "PNG")
    return file.getvalue()


def regression_plot(title: str, task: Task, outputs: Tensor, steps: Sequence[int]) -> bytes:
    """The true curve, the support points, and the network's curve after each of the inner `steps`.

    Args:
        task: [points, 1] each; the query set is the true curve.
        outputs: [steps, query points, 1].
    """
    from matplotlib import colormaps

    x, order = task.query_data[:, 0].sort()
    true = task.query_target[order, 0].numpy()
    errors = (outputs - task.query_target).square().mean((1, 2)).tolist()
    figure, axes = new_plot(
        f"{title}\nsquared error {errors[0]:.3g} before, {errors[-1]:.3g} after {steps[-1]} inner steps", "input"
    )
    middle, span = float(true.max() + true.min()) / 2, max(float(true.max() - true.min()), 1.0)
    axes.set_ylim(middle - 0.8 * span, middle + 0.8 * span)
    axes.plot(x, true, color=np.divide(PALE_GREEN, 255), linewidth=5, label="true curve")
    for number, (step, output) in enumerate(zip(steps, outputs, strict=True)):
        shade = 0.3 + 0.7 * number / max(len(steps) - 1, 1)
        axes.plot(x, clip_to_axes(output[order, 0], axes), color=colormaps["Blues"](shade), label=f"after {step}")
    axes.plot(task.support_data, task.support_target, "o", color="tab:red", markeredgecolor="white", label="support")
    return plot_png(figure, axes)


def metric_by_step(title: str, results: dict[str, EvalResult]) -> bytes:
    """The mean metric against inner steps with its 95 % interval, a curve for each evaluation."""
    metric = next(iter(results.values())).metric
    figure, axes = new_plot(f"{metric} {title}", "inner steps")
    means = {name: (result.values.mean(0), ci95_halfwidth(result.values)) for name, result in results.items()}
    ends = np.concatenate([(mean + half).numpy() for mean, half in means.values()])
    highest = max(ends[np.isfinite(ends)], default=1.0)
    axes.set_ylim(0, METRIC_BY_NAME[metric].upper_bound or 1.05 * highest or 1.0)
    for (name, (mean, half)), colour in zip(means.items(), COLOURS, strict=False):
        steps = range(len(mean))
        low, high = clip_to_axes(mean - half, axes), clip_to_axes(mean + half, axes)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, clip_to_axes(mean, axes), "o-", color=colour, markeredgecolor="white", label=name)
    axes.locator_params(axis="x", integer=True)
    return plot_png(figure, axes)


def new_plot(title: str, x_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # imported where a picture is drawn, since it takes 0.3 s

    figure = Figure((WIDTH / DPI, HEIGHT / DPI), DPI)
    axes = figure.add_axes((0.12, 0.15, 0.61, 0.70))
    axes.set_title(title, loc="left", x=-0.16, fontsize=8.5)
    axes.set_xlabel(x_label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#dddddd")
    return figure, axes


def clip_to_axes(values: Tensor, axes: Axes) -> np.ndarray:
    """Values with non-finite ones as gaps, and those far outside the y axis at a distance that can be drawn."""
    low, high = axes.get_ylim()
    finite = values.double().where(values.isfinite(), np.nan)
    return finite.clamp(2 * low - high, 2 * high - low).numpy()


def plot_png(figure: Figure, axes: Axes) -> bytes:
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1.03), frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
