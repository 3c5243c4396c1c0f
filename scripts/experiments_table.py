"""Print the table of docs/experiments.md, read from what each preset opens with.

python -m scripts.experiments_table
"""

from __future__ import annotations

import re
from pathlib import Path

PRESETS = Path(__file__).parent.parent / "configs" / "experiment"
PARTS = ("Paper", "Table", "Expected", "Command", "Time", "Departures")  # in this order


def header(path: Path) -> dict[str, str]:
    """What a preset opens with, by its parts."""
    found: dict[str, str] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines()[2:]:
        if part := re.fullmatch(r"# ([A-Z][a-z]+): +(\S.*)", line):
            name, found[part[1]] = part[1], part[2]
        elif more := re.fullmatch(r"# {13}(\S.*)", line):
            found[name] += f" {more[1]}"
        elif found:
            return found
    return found


def table() -> str:
    lines = ["| `experiment=` | paper and table | expected | time |", "| --- | --- | --- | --- |"]
    for path in sorted(PRESETS.glob("*.yaml")):
        said = header(path)
        authors = said["Paper"].partition(":")[0].split(", ")
        who = authors[0] if len(authors) == 1 else f"{authors[0]} et al." if len(authors) > 2 else " and ".join(authors)
        number = said["Paper"].rpartition("arXiv ")[2]
        lines.append(f"| `{path.stem}` | {who}, {number}: {said['Table']} | {said['Expected']} | {said['Time']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
