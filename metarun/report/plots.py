"""The plots of a report, as PNG: learning curves, the metric by inner step, the methods side by side."""

from __future__ import annotations

import io
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarun.report.compare import ComparisonTable, SeedGroup
from metarun.report.contents import Picture
from metarun.report.formatting import metric_name, scaled
from metarun.utils.fonts import drawable, families

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.")  # from the ninth colour on
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = 8  # in one picture; where there are more, all lines of a method look alike
BLOCKS = 12  # rows of one picture
ROWS = 40  # of one comparison
LETTERS = 40  # of a line of a name in a picture; a longer name takes several
CUT = 3  # times the greatest median of a line: where an axis of errors ends at the latest
WIDTH = 9.0  # inches, with the legend
HEIGHT = 3.3  # of a row
PIXELS_AN_INCH = 130
ROOM = 0.1  # inches, around each plot
Points = list[tuple[float, float, float, float]]  # x, the mean over seeds, their least and greatest


def draw(blocks: Sequence[ComparisonTable]) -> list[Picture]:
    """The report's pictures, with a row for each of the first `BLOCKS` tables."""
    names = [text for block in blocks for text in (block.name, *map(block.label, block.groups))]
    with rc_context({"font.family": families(names)}):
        return pictures(blocks)


def pictures(blocks: Sequence[ComparisonTable]) -> list[Picture]:
    shown = blocks[:BLOCKS]
    left_out = "" if len(shown) == len(blocks) else f" The first {len(shown)} of {len(blocks)} are drawn."
    return [
        Picture(
            "comparison.png",
            "The methods side by side",
            "A thick bar is the 95 % interval over test tasks of one run, a thin one that of "
            "the mean over seeds (an arrow where it goes on), hollow points are single seeds." + left_out,
            comparison(shown),
        ),
        Picture(
            "curves.png",
            "Learning curves",
            "Over outer steps, of the training tasks (a mean over 20 steps) and the validation tasks. "
            "A line is the mean over seeds, its shadow reaches from the least to the greatest of them." + left_out,
            curves(shown),
        ),
        Picture(
            "steps.png",
            "By inner step",
            "Test tasks after 0, 1, ... inner steps; 0 is at the task's starting weights. A line is the mean over "
            "seeds." + left_out,
            by_step(shown),
        ),
    ]


# --- lines -------------------------------------------------------------------------------------------------


def curves(blocks: Sequence[ComparisonTable]) -> bytes:
    figure = new_figure(HEIGHT * len(blocks))
    for row, block in enumerate(blocks):
        sides = [figure.add_subplot(len(blocks), 2, 2 * row + side) for side in (1, 2)]
        for axes, split, words in zip(sides, ("train", "val"), ("training tasks", "validation tasks"), strict=True):
            lines(axes, block, lambda group, split=split, block=block: learned(group, split, block.metric))
            label_axes(axes, f"{block.name}: {words}", "outer step", metric_name(block.metric))
        legend(sides[1], block)
    return png(figure)


def by_step(blocks: Sequence[ComparisonTable]) -> bytes:
    figure = new_figure(HEIGHT * len(blocks))
    for row, block in enumerate(blocks):
        axes = figure.add_subplot(len(blocks), 1, row + 1)
        lines(axes, block, lambda group: metric_by_inner_step(group))
        label_axes(axes, f"{block.name}: test tasks", "inner step", metric_name(block.metric))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes, block)
    return png(figure)


def lines(axes: Axes, block: ComparisonTable, points_of: Callable[[SeedGroup], Points]) -> None:
    """Draw a line for each group; with many groups, those of one method look alike."""
    middles = []
    for group in block.groups:
        points = [(x, *(scaled(block.metric, value) for value in values)) for x, *values in points_of(group)]
        if not points:
            continue
        x, middle, least, greatest = zip(*points, strict=True)
        middles.append(middle)
        look = style(block, group)
        crowded = len(block.groups) > LINES
        mark = {} if crowded or len(x) > 30 else {"marker": look["marker"], "markersize": 4}
        axes.plot(x, middle, color=look["color"], linestyle=look["linestyle"], linewidth=1 if crowded else 1.8, **mark)
        if not crowded and len(group.runs) > 1:
            axes.fill_between(x, least, greatest, color=look["color"], alpha=0.15, linewidth=0)
    if middles and not block.larger_is_better:  # an error that runs away would flatten all others
        top = CUT * max(statistics.median(middle) for middle in middles)
        if max(map(max, middles)) > top:
            axes.set_ylim(0, top)
            axes.annotate("goes on above", (0.99, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=8)


def learned(group: SeedGroup, split: str, metric: str) -> Points:
    """The metric over outer steps, at the steps that all seeds have."""
    seeds = [
        {entry["step"]: entry[metric] for entry in run.metrics if drawn(entry, split, metric)} for run in group.runs
    ]
    return [summary(step, [seed[step] for seed in seeds]) for step in sorted(set.intersection(*map(set, seeds)))]


def drawn(entry: Mapping[str, Any], split: str, metric: str) -> bool:
    return entry["split"] == split and isinstance(entry.get(metric), (int, float))


def metric_by_inner_step(group: SeedGroup) -> Points:
    columns = list(zip(*(run.by_step for run in group.runs), strict=False))
    found = [(step, [value for value in column if value is not None]) for step, column in enumerate(columns)]
    return [summary(step, values) for step, values in found if len(values) == len(group.runs)]


def summary(x: float, values: Sequence[float]) -> tuple[float, float, float, float]:
    return x, statistics.fmean(values), min(values), max(values)


# --- the comparison ----------------------------------------------------------------------------------------


def comparison(blocks: Sequence[ComparisonTable]) -> bytes:
    heights = [1.3 + sum(row_height(block, group) for group in block.groups[:ROWS]) for block in blocks]
    figure = new_figure(sum(heights))
    grid = figure.add_gridspec(len(blocks), 1, height_ratios=heights)
    for row, block in enumerate(blocks):
        side_by_side(figure.add_subplot(grid[row, 0]), block)
    return png(figure)


def row_height(block: ComparisonTable, group: SeedGroup) -> float:
    """Height in inches of a row whose label has so many lines."""
    return 0.14 + 0.2 * (1 + wrapped(block.label(group)).count("\n"))


def side_by_side(axes: Axes, block: ComparisonTable) -> None:
    groups, metric = block.groups[:ROWS], block.metric
    low, high = limits(block, groups)
    best = block.best
    for place, group in enumerate(groups):
        look = style(block, group)
        middle, tasks = scaled(metric, group.mean), scaled(metric, group.tasks_interval)
        axes.plot([middle - tasks, middle + tasks], [place] * 2, color=look["color"], linewidth=6, alpha=0.45)
        if group.seeds_interval is not None:
            seeds = scaled(metric, group.seeds_interval)
            left, right = max(middle - seeds, low), min(middle + seeds, high)
            axes.plot([left, right], [place] * 2, color=look["color"], linewidth=1.4)
            for end, inside, mark in ((left, middle - seeds >= low, "<"), (right, middle + seeds <= high, ">")):
                axes.plot(end, place, marker="|" if inside else mark, color=look["color"], markersize=8, clip_on=False)
            values = [scaled(metric, value) for value in group.means]
            axes.plot(values, [place] * len(values), "o", markerfacecolor="white", color=look["color"], markersize=5)
        axes.plot(middle, place, marker="D", color=look["color"], markersize=7)
    names = [f"{wrapped(block.label(group))}{'  (best)' if group in best else ''}" for group in groups]
    axes.set_yticks(range(len(groups)), names)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(low, high)
    more = "" if len(groups) == len(block.groups) else f", the first {ROWS} of {len(block.groups)}"
    better = "higher is better" if block.larger_is_better else "lower is better"
    label_axes(axes, f"{block.name}: test tasks{more}", f"{metric_name(metric)} ({better})", "")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, pad=9)


def limits(block: ComparisonTable, groups: Sequence[SeedGroup]) -> tuple[float, float]:
    """Limits of the axis: they enclose all means, seeds and intervals over tasks, but not the wide ones over seeds."""
    values = [scaled(block.metric, value) for group in groups for value in group.means]
    for group in groups:
        middle, tasks = scaled(block.metric, group.mean), scaled(block.metric, group.tasks_interval)
        values += [middle - tasks, middle + tasks]
    room = 0.15 * (max(values) - min(values)) or 1.0
    return min(values) - room, max(values) + room


# --- looks -------------------------------------------------------------------------------------------------


def style(block: ComparisonTable, group: SeedGroup) -> dict[str, str]:
    """Colour, dashes and marker of a group; with many groups, those of its method."""
    names = legend_names(block)
    place = names.index(legend_name(block, group))
    dashes = DASHES[place // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": dashes, "marker": MARKS[place % len(MARKS)]}


def legend_name(block: ComparisonTable, group: SeedGroup) -> str:
    return str(group.identity["method"]) if len(block.groups) > LINES else block.label(group)


def legend_names(block: ComparisonTable) -> list[str]:
    return list(dict.fromkeys(legend_name(block, group) for group in block.groups))


def new_figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    figure.set_layout_engine("constrained", h_pad=ROOM, w_pad=ROOM)
    return figure


def label_axes(axes: Axes, title: str, below: str, beside: str) -> None:
    axes.set_title(wrapped(title), fontsize=10, loc="left")
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, block: ComparisonTable) -> None:
    """Draw the legend to the right of the curves."""
    seen: dict[str, dict[str, str]] = {}
    for group in block.groups:
        seen.setdefault(wrapped(legend_name(block, group)), style(block, group))
    handles = [axes.plot([], [], **look, markersize=4)[0] for look in seen.values()]  # type: ignore[arg-type]
    axes.legend(handles, list(seen), loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9)


def wrapped(words: str) -> str:
    """A name from a file, wrapped over lines, with control characters and `$` escaped."""
    lines = textwrap.wrap(drawable(words), LETTERS, break_on_hyphens=False)
    return "\n".join(lines).replace("$", r"\$")


def png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PIXELS_AN_INCH)
    return file.getvalue()
