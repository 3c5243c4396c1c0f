"""How fast pictures are prepared and drawn from the prepared file, and what memory both take.

python -m scripts.preparation_speed [--images 10000] [--large 50000 100000 200000]

Photographs of 500x375 pixels are made up, saved as JPEG in class folders, prepared at 84x84 and drawn from; then sets
of `--large` pictures, tieredImageNet has 779,165, are prepared and drawn from by a process each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metarun.data import DataPaths, TaskShape
from metarun.data.cache import RawDataset, load_or_build_cache
from metarun.data.datasets import folder
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.image_set import ImageSet, image_set
from metarun.data.image_spec import ImageSpec, Raw

LOOK = ImageSpec(84, 3)
SHAPE = TaskShape(ways=5, shots=1, queries=15)
CLASSES = 100
TASKS = 4  # of a meta-batch
DRAWN = 1000  # tasks


def photographs(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / f"class {i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def draw(found: ImageSet) -> float:
    """Tasks a second."""
    source = ImageTaskSampler(found, torch.device("cpu"))
    began = time.perf_counter()
    for number in range(0, DRAWN, TASKS):
        source.draw(0, "train", number, TASKS, SHAPE)
    return DRAWN / (time.perf_counter() - began)


def held(kind: str) -> float:
    """MiB of this process's memory: "RssAnon" its own, "RssFile" pages of files, which the system takes back."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 1024


def large(count: int, cache: Path) -> None:
    """Prepare and draw from `count` pictures; prints how fast, and the largest memory of its own in both."""
    before = held("RssAnon")
    most = [before]

    def watch() -> None:
        while True:
            most[0] = max(most[0], held("RssAnon"))
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    noise = np.random.default_rng(0).integers(0, 256, (84, 84, 3), dtype=np.uint8)
    names = [str(i) for i in range(CLASSES)]

    def images() -> Iterator[tuple[str, Raw]]:
        return ((str(i), np.roll(noise, i, 1)) for i in range(count))

    began = time.perf_counter()
    found = load_or_build_cache(
        cache, f"{count}", LOOK, "", lambda _: RawDataset(names, np.arange(count) % CLASSES, images())
    )
    seconds, preparing = time.perf_counter() - began, most[0] - before
    parts = {"train": names[:60], "val": names[60:80], "test": names[80:]}
    most[0] = before
    rate = draw(image_set(found, LOOK, parts, ""))
    size = found.images.nbytes / 2**30
    print(f"| {count} | {size:.1f} | {count / seconds:.0f} | {preparing:.0f} | {rate:.0f} | {most[0] - before:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--large", type=int, nargs="*", default=[50_000, 100_000, 200_000])
    parser.add_argument("--only", nargs=2, metavar=("COUNT", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.only:
        return large(int(chosen.only[0]), Path(chosen.only[1]))
    with tempfile.TemporaryDirectory() as place:
        root, cache = Path(place, "pictures"), Path(place, "cache")
        photographs(root, chosen.images)
        for start in ("first", "second"):
            began = time.perf_counter()
            found = folder.load(DataPaths(root, cache, False), str(root), LOOK.size, False, 0)
            seconds = time.perf_counter() - began
            print(f"{start} start: {seconds:.2f} s, {chosen.images / seconds:.0f} photographs a second", flush=True)
        print(f"{draw(found):.0f} tasks a second: 5 ways, 1 shot, 15 queries, 84x84, {os.cpu_count()} cores\n")
    print("| pictures | GiB | prepared a second | MiB of its own at most | tasks a second | MiB of its own at most |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for count in chosen.large:
        with tempfile.TemporaryDirectory() as cache:
            subprocess.run([sys.executable, "-m", "scripts.preparation_speed", "--only", str(count), cache], check=True)


if __name__ == "__main__":
    main()
