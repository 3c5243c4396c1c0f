"""Several processes: how far their result is from that of one, and how much faster they are.

python -m scripts.processes [--rounds 3] [--steps 100] [KEY=VALUE ...]

Runs of 20 steps with 1, 2 and 4 processes are compared, on curves and on glyphs; then runs with one process (which
takes all cores) and with two are timed in turn, with Conv4 and MAML on glyphs in the published form, pool and five
inner steps. Biases are left out there: before batch norm their gradient is rounding alone, which Adam makes steps of
full length from. What rounding alone does is shown by one process with another number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from metarun.checkpointing import store
from metarun.training.trainer import TRAIN_LINE_EVERY

WORK = ["backbone=conv4", "backbone.bias=false", "queries=5", "inner_loop=5", "inner_learning_rate=0.01", "device=cpu"]
SHORT = ["eval.tasks=2", "eval.validation_tasks=2", "eval.every=100000", "outer_schedule=constant"]


CURVES = ["dataset=sinusoid", "meta_batch=8", "device=cpu"]
THREADS = max(2, os.cpu_count() or 2)


def run(folder: Path, workers: int, steps: int, words: list[str], threads: int | None = None) -> None:
    own = [f"engine.workers={workers}", f"iterations={steps}", f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "metarun", *SHORT, *words, *own]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def difference(one: Path, other: Path) -> float:
    """The largest, over parameters, of |difference| / (|one| as a whole tensor)."""
    first, second = (store.load(store.latest_intact_checkpoint(folder)).weights for folder in (one, other))
    pairs = [(mine[name], theirs[name]) for mine, theirs in zip(first[:2], second[:2], strict=True) for name in mine]
    return max(float((a - b).norm() / a.norm()) for a, b in pairs if a.norm() > 0)


def milliseconds_a_step(folder: Path) -> float:
    """Without the first line's steps, which warm up."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [entry["seconds"] for entry in entries if entry["split"] == "train"]
    return 1e3 * statistics.median(b - a for a, b in pairwise(times)) / TRAIN_LINE_EVERY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    asked, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        print("| processes | on | largest relative difference from one after 20 steps |\n| --- | --- | --- |")
        for name, work in (("curves", CURVES), ("glyphs", [*WORK, *words])):
            run(base / name, 1, 20, work, threads=1)
            for workers in (2, 4):
                run(base / f"{name}-{workers}", workers, 20, work, threads=1)
                print(f"| {workers} | {name} | {difference(base / name, base / f'{name}-{workers}'):.1e} |")
            run(base / f"{name}-threads", 1, 20, work, threads=THREADS)
            print(f"| 1, {THREADS} threads | {name} | {difference(base / name, base / f'{name}-threads'):.1e} |")
        times: dict[int, list[float]] = {1: [], 2: []}
        for number in range(asked.rounds):
            for workers, found in times.items():
                folder = base / f"timed-{workers}-{number}"
                run(folder, workers, asked.steps, [*WORK, *words])
                found.append(milliseconds_a_step(folder))
        one, two = (statistics.median(found) for found in times.values())
        print(
            f"\n{os.cpu_count()} cores: 1 process {one:.1f} ms a step, 2 {two:.1f} ms: {one / two:.2f} times the speed"
        )


if __name__ == "__main__":
    main()
