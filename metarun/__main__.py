"""`python -m metarun`: the same as the command `metarun`."""

import sys

from metarun.cli.app import main

sys.exit(main())
