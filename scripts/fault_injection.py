"""How checkpoints bear a failing disk: every call fails in turn, every byte is cut and flipped; a table of counts.

python -m scripts.fault_injection [ELEMENTS ...]

ELEMENTS are the sizes of the tensor in the checkpoint (3 and 3000 unless told); every byte of each file is tried.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.helpers.faults import cut, flip, inject


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("elements", nargs="*", type=int, help="sizes of the tensor in the checkpoint (3 and 3000)")
    sizes = parser.parse_args().elements or [3, 3000]
    tried: Counter[str] = Counter()
    right: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            for name, faults in (("inject", inject), ("cut", cut), ("flip", flip)):
                place = Path(folder) / f"{name}-{size}"
                if faults is inject:
                    place.mkdir()
                for kind, well in faults(place, size=size):
                    tried[kind] += 1
                    right[kind] += well
    print("| fault | injected | right | wrong |\n| --- | --- | --- | --- |")
    for kind in [*tried, "all"]:
        count, good = (tried.total(), right.total()) if kind == "all" else (tried[kind], right[kind])
        print(f"| {kind} | {count} | {good} | {count - good} |")
    return 0 if tried == right else 1


if __name__ == "__main__":
    sys.exit(main())
