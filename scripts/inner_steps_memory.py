"""What many inner steps cost, unrolled and mixed: peak memory, time of an outer step, and how far the two differ.

python -m scripts.inner_steps_memory [--steps 5,20,100] [--rounds 5] [--limit MIB] [KEY=VALUE ...]

MAML with conv4, 32 filters, on 84x84 pictures of noise, 5 ways, 1 shot, 15 queries, one task, unless told otherwise by
the words that metarun takes. A peak is of a process of its own (Linux only); times are medians of outer steps that take
turns. Where unrolled needs more than --limit (by default half of the memory that is free) at one number of steps, it is
spared the larger ones.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scripts.method_cost import peak, training

KINDS = ("mixed", "unrolled")
CLASSES, EACH = 6, 16  # of a split, of a class
WORDS = ["dataset=folder", "dataset.size=84", "backbone=conv4_narrow", "device=cpu", "meta_batch=1"]
WORDS += ["queries=15", "inner_learning_rate=0.01"]


def draw_noise(folder: Path) -> None:
    """folder/SPLIT/CLASS/NUMBER.png"""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in range(CLASSES):
            place = folder / split / f"{split}-{name}"
            place.mkdir(parents=True)
            for number in range(EACH):
                Image.fromarray(random.integers(0, 256, (84, 84, 3), dtype=np.uint8)).save(place / f"{number}.png")


def free() -> float:
    """MiB that processes can still have."""
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 1024


def seconds(words: list[str], rounds: int, folder: str) -> tuple[dict[str, float], float]:
    """Of an outer step, for each kind, and the largest difference of their first meta-gradients, in norms."""
    runs = {kind: training([*words, f"engine.meta_gradient={kind}"], folder) for kind in KINDS}
    gradients = [run.work.meta_gradient(0, 1, True)[0].theta for run in runs.values()]
    whole = max(float(tensor.norm()) for tensor in gradients[0].values())
    difference = max(float((gradients[1][name] - tensor).norm()) / whole for name, tensor in gradients[0].items())
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind, run in runs.items():
            began = time.perf_counter()
            run.outer_step()
            if number:  # the first round warms up
                times[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(entries) for kind, entries in times.items()}, difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="5,20,100")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=free() / 2)
    asked, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        draw_noise(Path(folder) / "pictures")
        words = [*WORDS, f"dataset.root={folder}/pictures", f"cache_dir={folder}/cache", *words]
        numbers = [int(number) for number in asked.steps.split(",")]
        print("| inner steps | engine.meta_gradient | MiB at the peak | times mixed's at the least steps |")
        print("| --- | --- | --- | --- |")
        least, fits = 0.0, True
        for number in numbers:
            for kind in KINDS if fits else KINDS[:1]:
                found = peak([*words, f"inner_loop={number}", f"engine.meta_gradient={kind}"])
                least, fits = least or found, fits and found < asked.limit
                print(f"| {number} | {kind} | {found:.0f} | {found / least:.2f} |", flush=True)
        times, difference = seconds([*words, f"inner_loop={numbers[0]}"], asked.rounds, folder)
    told = ", ".join(f"{kind} {1e3 * times[kind]:.0f} ms" for kind in KINDS)
    print(f"\nAn outer step of {numbers[0]} inner steps, {torch.get_num_threads()} threads: {told},", end=" ")
    print(f"{times['mixed'] / times['unrolled']:.2f} times; meta-gradients differ by {difference:.0e} of their norm")


if __name__ == "__main__":
    main()
