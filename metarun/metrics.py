"""The metrics that tasks are measured by: which direction is better, and how a value is written for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Metric:
    """A metric of a task's query set. Values are stored as fractions or errors; `unit` is for people only."""

    name: str  # the key in metrics.jsonl, result.json, tasks.csv and in an objective's measures
    title: str  # label of a plot's axis or a table's column
    higher_is_better: bool
    unit: str = ""  # "%": people read 100 times the stored value
    upper_bound: float | None = None  # the largest possible value

    @property
    def scale(self) -> int:
        """Factor between a stored value and the number that people read."""
        return 100 if self.unit == "%" else 1

    @property
    def suffix(self) -> str:
        """The unit as it follows a number, e.g. `47.11 %`."""
        return f" {self.unit}" if self.unit else ""

    @property
    def direction(self) -> str:
        """`maximize` or `minimize`, as Optuna and other sweepers name it."""
        return "maximize" if self.higher_is_better else "minimize"

    def is_better(self, value: float, other: float) -> bool:
        return value > other if self.higher_is_better else value < other

    def sort_key(self, value: float) -> float:
        """Sorts values from the best to the worst."""
        return -value if self.higher_is_better else value

    def format(self, value: float | None) -> str:
        """A value without its unit, e.g. `47.11` or `0.0123`; `-` for None."""
        if value is None:
            return "-"
        if self.unit == "%":
            return f"{self.scale * value:.2f}"
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"

    def format_ci95(self, ci95: float | None) -> str:
        """Half the width of a 95 % interval, e.g. `± 0.54`; `-` for None."""
        return "-" if ci95 is None else f"± {self.format(ci95)}"

    def format_interval(self, mean: float, ci95: float) -> str:
        """A mean and half the width of its 95 % interval to the same decimals, e.g. `47.11 ± 0.54 %`."""
        if self.unit == "%":
            return f"{self.format(mean)} {self.format_ci95(ci95)}{self.suffix}"
        return f"{mean:.4f} ± {ci95:.4f}" if abs(mean) < 1e6 else f"{mean:.3g} ± {ci95:.3g}"


ACCURACY = Metric("accuracy", "accuracy in %", higher_is_better=True, unit="%", upper_bound=1.0)
MSE = Metric("mse", "mean squared error", higher_is_better=False)
METRIC_BY_NAME: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in (ACCURACY, MSE)})
