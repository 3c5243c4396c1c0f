"""The command, as a test types it."""

from __future__ import annotations

import sys

from metarun.cli import app


def command(*arguments: str) -> int:
    """Its exit status."""
    before, sys.argv = sys.argv, ["metarun", *arguments]
    try:
        return app.main()
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    finally:
        sys.argv = before
