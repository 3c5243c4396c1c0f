"""How exactly each method keeps each law: a table of the largest error that the tests measured.

python -m scripts.laws [PYTEST ARGUMENT ...]
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "tests" / "methods"
FILES = sorted(TESTS.glob("test_*.py"), key=lambda path: path.stem != "test_laws")  # whose order is the table's


class Collector:
    """What tests recorded as law, method and error."""

    def __init__(self) -> None:
        self.errors: dict[tuple[str, str], float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        values = [value for name, value in report.user_properties if name in ("law", "method", "error")]
        for law, method, error in zip(values[::3], values[1::3], values[2::3], strict=True):
            assert isinstance(law, str) and isinstance(method, str) and isinstance(error, float)
            self.errors[method, law] = max(error, self.errors.get((method, law), 0.0))

    def table(self) -> str:
        methods, laws = (list(dict.fromkeys(key[side] for key in self.errors)) for side in (0, 1))
        rows = [["method", *laws], ["---"] * (len(laws) + 1)]
        rows += [[method, *(self.cell(method, law) for law in laws)] for method in methods]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def cell(self, method: str, law: str) -> str:
        """An error of exactly zero is written 0; a law that says nothing of the method leaves its cell empty."""
        error = self.errors.get((method, law))
        return "" if error is None else f"{error:.0e}" if error else "0"


def main() -> int:
    collector = Collector()
    with contextlib.redirect_stdout(sys.stderr):
        status = pytest.main(["-q", "-p", "no:cacheprovider", *map(str, FILES), *sys.argv[1:]], plugins=[collector])
    print(collector.table())
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
