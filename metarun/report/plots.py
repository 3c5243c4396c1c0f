"""The plots of a report, as PNG: groups side by side, learning curves, the metric by inner step."""

import io
import statistics
import textwrap
from collections.abc import Callable, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarun.report.compare import Comparison, SeedGroup
from metarun.report.contents import Picture
from metarun.utils.fonts import drawable, families

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.")  # from the ninth colour on
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_LINES = 8  # of a plot; if there are more, all lines of a method look alike
MAX_COMPARISONS = 12  # rows of a picture
MAX_GROUPS = 40  # of a side-by-side plot
LABEL_WIDTH = 40  # characters of a line of a label; a longer label takes several lines
ERROR_AXIS = 3  # an axis of errors ends at most at so many times the greatest median of a line
WIDTH, HEIGHT = 9.0, 3.3  # inches, of a picture and of one of its rows
DPI = 130
Points = list[tuple[float, float, float, float]]  # x, and the mean, least and greatest value over seeds


def draw(comparisons: Sequence[Comparison]) -> list[Picture]:
    """Three pictures with a row for each comparison; only the first MAX_COMPARISONS are drawn."""
    drawn = comparisons[:MAX_COMPARISONS]
    more = "" if len(drawn) == len(comparisons) else f" The first {len(drawn)} of {len(comparisons)} are drawn."
    texts = [text for each in drawn for text in (each.name, *map(each.label, each.groups))]
    side_by_side = (
        "A thick bar is the 95 % interval over test tasks of one run, a thin one that of the mean over seeds (an arrow "
        "where it goes on), hollow points are single seeds."
    )
    by_outer_step = (
        "Over outer steps, of the training tasks (a mean over 20 steps) and the validation tasks. A line is the mean "
        "over seeds, its shadow reaches from the least to the greatest of them."
    )
    by_inner_step = (
        "Test tasks after 0, 1, ... inner steps; 0 is at the task's starting weights. A line is the mean over seeds."
    )
    with rc_context({"font.family": families(texts), "savefig.dpi": DPI}):
        return [
            Picture("comparison.png", "The methods side by side", side_by_side + more, comparison_plot(drawn)),
            Picture("curves.png", "Learning curves", by_outer_step + more, learning_curves(drawn)),
            Picture("steps.png", "By inner step", by_inner_step + more, inner_step_curves(drawn)),
        ]


def learning_curves(comparisons: Sequence[Comparison]) -> bytes:
    figure = new_figure(HEIGHT * len(comparisons))
    for row, comparison in zip(figure.subplots(len(comparisons), 2, squeeze=False), comparisons, strict=True):
        for axes, split, tasks in zip(row, ("train", "val"), ("training tasks", "validation tasks"), strict=True):
            plot_lines(axes, comparison, lambda group, split=split: points_by_outer_step(group, split))
            label_axes(axes, f"{comparison.name}: {tasks}", "outer step", comparison.metric.title)
        add_legend(row[1], comparison)
    return png(figure)


def inner_step_curves(comparisons: Sequence[Comparison]) -> bytes:
    figure = new_figure(HEIGHT * len(comparisons))
    for (axes,), comparison in zip(figure.subplots(len(comparisons), 1, squeeze=False), comparisons, strict=True):
        plot_lines(axes, comparison, points_by_inner_step)
        label_axes(axes, f"{comparison.name}: test tasks", "inner step", comparison.metric.title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(axes, comparison)
    return png(figure)


def plot_lines(axes: Axes, comparison: Comparison, points_of: Callable[[SeedGroup], Points]) -> None:
    """Plot a line for each group that has points, with the range over its seeds."""
    scale, crowded = comparison.metric.scale, len(comparison.groups) > MAX_LINES
    lines = []
    for group in comparison.groups:
        points = points_of(group)
        if not points:
            continue
        x, *values = zip(*points, strict=True)
        mean, least, greatest = ([scale * value for value in column] for column in values)
        lines.append(mean)
        look = style(comparison, group)
        marker = "" if crowded or len(x) > 30 else look["marker"]
        axes.plot(x, mean, **{**look, "marker": marker}, markersize=4, linewidth=1 if crowded else 1.8)  # type: ignore[arg-type]
        if not crowded and len(group.runs) > 1:
            axes.fill_between(x, least, greatest, color=look["color"], alpha=0.15, linewidth=0)
    if lines and not comparison.metric.higher_is_better:  # a diverging error would flatten all others
        top = ERROR_AXIS * max(map(statistics.median, lines))
        if max(map(max, lines)) > top:
            axes.set_ylim(0, top)
            axes.annotate("goes on above", (0.99, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=8)


def points_by_outer_step(group: SeedGroup, split: str) -> Points:
    """The metric at the outer steps that every seed has."""
    name = group.runs[0].metric.name
    seeds = [
        {entry["step"]: entry[name] for entry in run.metrics if entry["split"] == split and entry.get(name) is not None}
        for run in group.runs
    ]
    return [over_seeds(step, [seed[step] for seed in seeds]) for step in sorted(set.intersection(*map(set, seeds)))]


def points_by_inner_step(group: SeedGroup) -> Points:
    columns = enumerate(zip(*(run.by_step for run in group.runs), strict=False))
    return [over_seeds(step, [v for v in column if v is not None]) for step, column in columns if None not in column]


def over_seeds(x: float, values: Sequence[float]) -> tuple[float, float, float, float]:
    return x, statistics.fmean(values), min(values), max(values)


def comparison_plot(comparisons: Sequence[Comparison]) -> bytes:
    heights = [1.3 + sum(label_height(each.label(group)) for group in each.groups[:MAX_GROUPS]) for each in comparisons]
    figure = new_figure(sum(heights))
    rows = figure.subplots(len(comparisons), 1, squeeze=False, height_ratios=heights)
    for (axes,), comparison in zip(rows, comparisons, strict=True):
        plot_side_by_side(axes, comparison)
    return png(figure)


def label_height(label: str) -> float:
    """Inches."""
    return 0.14 + 0.2 * (1 + wrapped(label).count("\n"))


def plot_side_by_side(axes: Axes, comparison: Comparison) -> None:
    groups, scale = comparison.groups[:MAX_GROUPS], comparison.metric.scale
    low, high = axis_limits(comparison, groups)
    for row, group in enumerate(groups):
        look = style(comparison, group)
        color, mean, tasks_ci95 = look["color"], scale * group.mean, scale * group.tasks_ci95
        axes.plot([mean - tasks_ci95, mean + tasks_ci95], [row] * 2, color=color, linewidth=6, alpha=0.45)
        if group.seeds_ci95 is not None:
            left, right = mean - scale * group.seeds_ci95, mean + scale * group.seeds_ci95
            axes.plot([max(left, low), min(right, high)], [row] * 2, color=color, linewidth=1.4)
            for end, marker in (
                (max(left, low), "<" if left < low else "|"),
                (min(right, high), ">" if right > high else "|"),
            ):
                axes.plot(end, row, marker=marker, color=color, markersize=8, clip_on=False)
            values = [scale * value for value in group.means]
            axes.plot(values, [row] * len(values), "o", markerfacecolor="white", color=color, markersize=5)
        axes.plot(mean, row, marker="D", color=color, markersize=7)
    labels = [wrapped(comparison.label(group)) + "  (best)" * (group in comparison.best) for group in groups]
    axes.set_yticks(range(len(groups)), labels)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(low, high)
    more = "" if len(groups) == len(comparison.groups) else f", the first {MAX_GROUPS} of {len(comparison.groups)}"
    label_axes(axes, f"{comparison.name}: test tasks{more}", f"{comparison.metric.title} ({comparison.order})", "")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, pad=9)


def axis_limits(comparison: Comparison, groups: Sequence[SeedGroup]) -> tuple[float, float]:
    """Limits that hold every mean, seed and interval over tasks; an interval over two seeds may be far wider."""
    values = [value for group in groups for value in group.means]
    values += [group.mean + sign * group.tasks_ci95 for group in groups for sign in (-1, 1)]
    values = [comparison.metric.scale * value for value in values]
    margin = 0.15 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def style(comparison: Comparison, group: SeedGroup) -> dict[str, str]:
    """Colour, dashes and marker of a group, or of its method if there are more than MAX_LINES groups."""
    index = legend_names(comparison).index(legend_name(comparison, group))
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dashes, "marker": MARKERS[index % len(MARKERS)]}


def legend_name(comparison: Comparison, group: SeedGroup) -> str:
    return str(group.identity["method"]) if len(comparison.groups) > MAX_LINES else comparison.label(group)


def legend_names(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(legend_name(comparison, group) for group in comparison.groups))


def new_figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    return figure


def label_axes(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(wrapped(title), fontsize=10, loc="left")
    axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Axes, comparison: Comparison) -> None:
    """Legend to the right of the plot."""
    looks = {wrapped(legend_name(comparison, group)): style(comparison, group) for group in comparison.groups}
    handles = [axes.plot([], [], **look, markersize=4)[0] for look in looks.values()]  # type: ignore[arg-type]
    axes.legend(handles, list(looks), loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9)


def wrapped(text: str) -> str:
    """Text of a file as a label: whole, over several lines, without control characters or mathematics."""
    return "\n".join(textwrap.wrap(drawable(text), LABEL_WIDTH, break_on_hyphens=False)).replace("$", r"\$")


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
