"""Every row of docs/modules.md names a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

import tests

ROOT = Path(tests.__file__).parents[1]
PAGE = ROOT / "docs" / "modules.md"


def test_every_row_names_a_test_that_there_is() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.fullmatch(r"\|.+\|.+\| `(tests/[\w/]+\.py)::(test_\w+)` \|", row)
        assert named, f"no test is named: {row}"
        defined = re.search(rf"^def {named[2]}\(", (ROOT / named[1]).read_text(encoding="utf-8"), re.MULTILINE)
        assert defined, f"there is no such test: {row}"
