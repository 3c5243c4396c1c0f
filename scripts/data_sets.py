"""The data sets: their classes in each split and pictures, which of them are there, and where each is looked for.

python -m scripts.data_sets [--data-dir FOLDER] [--cache-dir FOLDER]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from metarun.data import PUBLISHED, DataPaths
from metarun.data.datasets.published import PublishedDataset, candidate_dirs, locate
from metarun.data.formats.omniglot import FOLDERS, HALF_NAMES, locate_hdf5
from metarun.data.formats.omniglot import locate as locate_half
from metarun.data.splits import format_sizes, published_splits
from metarun.errors import UserError

DATA_DIR = os.environ.get("METARUN_DATA", "~/.cache/metarun/data")
PICTURES = {"cifar_fs": 60_000, "fc100": 60_000, "miniimagenet": 60_000, "tieredimagenet": 779_165, "cub": 11_788}


def of_known(known: PublishedDataset, paths: DataPaths) -> tuple[str, str]:
    """Whether it is there and in which form; where it is looked for."""
    try:
        found = locate(known, paths)
        there = f"{found[1].name} in {found[0]}" if found else "no"
    except UserError as error:
        there = f"damaged: {error}"
    return there, ", ".join(str(folder) for folder in candidate_dirs(known, paths.data_dir))


def of_omniglot(data_dir: Path) -> tuple[str, str]:
    halves = [locate_half(data_dir, top) for top in HALF_NAMES]
    there = " and ".join(map(str, halves)) if all(halves) else str(locate_hdf5(data_dir) or "no")
    return there, ", ".join(str(data_dir / place) for place in FOLDERS)


def show(name: str, splits: str, pictures: int, there: str, looked: str) -> None:
    print(f"{name}\n  classes   {splits}\n  pictures  {pictures:,}\n  there     {there}\n  looked in {looked}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(DATA_DIR))
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/metarun"))
    chosen = parser.parse_args()
    paths = DataPaths(chosen.data_dir.expanduser(), chosen.cache_dir.expanduser(), False)
    show("glyphs", "1000/150/400", 31_000, "drawn when they are needed", f"kept in {paths.cache_dir}")
    classes = "1028/172/423 (vinyals), 1100/100/423 (maml), 864/100/659 (lake)"
    show("omniglot", classes, 32_460, *of_omniglot(paths.data_dir))
    for known in PUBLISHED:
        divisions = published_splits(known.name).items()
        splits = ", ".join(f"{format_sizes(parts)} ({name})" for name, parts in divisions)
        show(known.name, splits, PICTURES[known.name], *of_known(known, paths))


if __name__ == "__main__":
    main()
