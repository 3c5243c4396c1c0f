"""`python -m metarun`: the same as the command `metarun`."""

from __future__ import annotations

import sys

from metarun.cli.app import main

sys.exit(main())
