"""The metric of each test task (tasks.csv), and the paired difference of two runs on the same tasks.

Tasks differ in difficulty by far more than runs do. That variance cancels in the difference on the same tasks, so its
interval is narrower than the intervals of the two runs suggest.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.errors import UserError, relative_to_cwd
from metarun.metrics import METRIC_BY_NAME
from metarun.utils import files
from metarun.utils.run_outputs import RESULT, read_result
from metarun.utils.safe_files import read_text
from metarun.utils.text import pluralize

TASKS_CSV = "tasks.csv"
TEST_TASKS_KEY = "test_tasks"  # key of result.json: what the test tasks are drawn from


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two runs' metric on the same tasks, the first run's less the second's.

    Values are in the metric's stored unit, a fraction for accuracy. Every interval is half the width of the 95 % one.
    """

    metric: str  # a key of METRIC_BY_NAME
    tasks: int  # number of tasks that both runs have
    mean: float
    ci95: float
    separate: tuple[float, float]  # each run's own interval

    @property
    def narrower(self) -> float:
        """Ratio of the interval for unpaired tasks, sqrt(a^2 + b^2) of `separate`, to `ci95`."""
        return math.hypot(*self.separate) / self.ci95 if self.ci95 else math.inf

    @property
    def is_significant(self) -> bool:
        """Whether the 95 % interval excludes zero."""
        return abs(self.mean) > self.ci95

    def __str__(self) -> str:
        metric = METRIC_BY_NAME[self.metric]
        scale, unit = metric.scale, metric.suffix
        one, other = (f"{scale * ci95:.4g}" for ci95 in self.separate)
        return (
            f"{self.metric} differs by {scale * self.mean:+.4g} ± {scale * self.ci95:.4g}{unit} on the same "
            f"{pluralize(self.tasks, 'task')} (each run's own interval: ± {one} and ± {other}; on different tasks, the "
            f"interval of the difference would be {self.narrower:.1f} times as wide)"
        )


def mean_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean over tasks, and half the width of its 95 % interval, 1.96 std / sqrt(tasks)."""
    mean = statistics.fmean(values)
    square = statistics.fmean((value - mean) * (value - mean) for value in values)
    return mean, 1.96 * math.sqrt(square / len(values))


def paired_difference(metric: str, values: Sequence[float], other_values: Sequence[float]) -> PairedDifference:
    """`values` less `other_values`, on the first tasks, as many as both have."""
    count = min(len(values), len(other_values))
    values, other_values = values[:count], other_values[:count]
    mean, ci95 = mean_ci95([a - b for a, b in zip(values, other_values, strict=True)])
    return PairedDifference(metric, count, mean, ci95, (mean_ci95(values)[1], mean_ci95(other_values)[1]))


def write_tasks(path: Path, metric: str, values: Iterable[float]) -> None:
    """Write tasks.csv: the metric of each test task, exact to the bit.

    Raises:
        RunFailure: the disk is full or fails.
    """
    lines = (f"{number},{value!r}\n" for number, value in enumerate(values))
    files.atomic_write(path, f"task,{metric}\n" + "".join(lines))


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading or parsing `path`, a file of a run folder, into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{relative_to_cwd(path)}: cannot be read ({error.strerror}); give the folder of a finished run"
        ) from error
    except ValueError as error:
        raise UserError(f"{relative_to_cwd(path)}: is damaged ({error}); evaluate the run again") from error


def read_tasks(path: Path) -> tuple[str, list[float]]:
    """Read tasks.csv: the metric's name, and its value for each test task.

    Raises:
        UserError: the file is missing, cannot be read or is not such a table.
    """
    with explain_read_errors(path):
        return parse_tasks(read_text(path))


def parse_tasks(text: str) -> tuple[str, list[float]]:
    """Parse the text of a tasks.csv. Raises ValueError if it is not such a table."""
    header, *lines = text.splitlines() or [""]
    first, _, metric = header.partition(",")
    rows = [line.split(",") for line in lines]
    if first != "task" or metric not in METRIC_BY_NAME or not rows:
        known = " or ".join(METRIC_BY_NAME)
        raise ValueError(f"must be a first line task,METRIC, where METRIC is {known}, and then a line for each task")
    for number, row in enumerate(rows):
        if len(row) != 2 or row[0] != str(number):
            raise ValueError(f"line {number + 2} is not task {number}")
    return metric, [float(value) for _, value in rows]


def compare_runs(one: Path, other: Path) -> PairedDifference:
    """The paired difference of two run folders, each with the result of a single evaluation; `one` less `other`.

    Raises:
        UserError: a file is missing or damaged, or the runs were tested on different tasks.
    """
    test_tasks = [read_single_result(folder)[TEST_TASKS_KEY] for folder in (one, other)]
    if test_tasks[0] != test_tasks[1]:
        raise UserError(
            f"{relative_to_cwd(one)} and {relative_to_cwd(other)}: tested on different tasks, "
            f"{test_tasks[0]} and {test_tasks[1]}; evaluate both alike, with mode=evaluate checkpoint=RUN"
        )
    (metric, values), (_, other_values) = (read_tasks(folder / TASKS_CSV) for folder in (one, other))
    return paired_difference(metric, values, other_values)


def read_single_result(folder: Path) -> dict[str, Any]:
    """Read a folder's result.json. Raises UserError if there is none, or if it holds several evaluations."""
    path = folder / RESULT
    with explain_read_errors(path):
        result = read_result(folder)
    if not isinstance(result, dict) or "results" in result:
        raise UserError(f"{relative_to_cwd(path)}: holds several evaluations; give the folder of a single one")
    if TEST_TASKS_KEY not in result:
        raise UserError(f"{relative_to_cwd(path)}: an older version wrote it; evaluate the run again")
    return result
