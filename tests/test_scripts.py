"""Every program in scripts/ can be run as `python -m scripts.NAME`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

NAMES = sorted(path.stem for path in (Path(__file__).parent.parent / "scripts").glob("[a-z]*.py"))
NEEDS = {"benchmark_jax": "jax"}


@pytest.mark.parametrize("name", NAMES)
def test_a_program_can_be_imported(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    import_module(f"scripts.{name}")
