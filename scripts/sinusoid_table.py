"""Meta-SGD's sinusoid experiment (arXiv 1707.09835, Table 1) for every method: mean squared error after one step.

python -m scripts.sinusoid_table [--iterations 60000] [--methods maml msgd ...] [--shots 5 10 20] [--jobs 2]

Curves have amplitude U[0.1, 5], frequency U[0.8, 1.2] and phase U[0, pi]; a network 1-40-40-1 learns from meta-batches
of 4 curves with K support and 10 query points. It is tested on 100 curves, each with 100 draws of its points, 100 of
them query points; the interval is 1.96 standard deviations over curves / sqrt(100). Prints a Markdown table: what was
trained, against the shots that it was tested with. A run that lies in the folder already is not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from metarun.checkpointing import store
from metarun.core.meta_learner import evaluate_tasks
from metarun.data import method_noise
from metarun.data.datasets.sinusoid import SinusoidTaskSampler
from metarun.data.random_numbers import philox_words
from metarun.engine.context import build_context

METHODS = {
    "maml": ["method=maml"],
    "msgd": ["method=msgd"],
    "tnet": ["method=mtnet", "method.mask=false"],
    "mtnet": ["method=mtnet"],
    "warpgrad": ["method=warpgrad"],
    "l2f": ["method=l2f"],
}
CURVES, REPEATS, QUERIES = 100, 100, 100
TEST_SHOTS = (5, 10, 20)


def train(folder: Path, method: str, shots: int, iterations: int) -> None:
    run = folder / f"{method}-{shots}"
    if (run / "result.json").exists():
        return
    protocol = ["dataset=sinusoid", "dataset.frequency=[0.8,1.2]", "inner_loop=1", "meta_batch=4", "queries=10"]
    length = [
        f"shots={shots}",
        f"eval.shots={shots}",
        "eval.inner_loop=1",
        f"iterations={iterations}",
        "eval.every=2000",
    ]
    command = [sys.executable, "-m", "metarun", *METHODS[method], *protocol, *length, f"hydra.run.dir={run}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def test(folder: Path, method: str, trained: int, shots: int) -> str:
    """Mean and interval with the best checkpoint by validation."""
    path = store.best_checkpoint_path(folder / f"{method}-{trained}")
    state = store.load(path)
    work = build_context(state.settings)
    work.load_state_dict(state.weights, str(path))
    assert isinstance(work.source, SinusoidTaskSampler)
    tasks = CURVES * REPEATS
    curves = np.repeat(philox_words(0, 4, 0, CURVES, 3), REPEATS, axis=0)
    drawn = work.source.tasks(curves, philox_words(0, 5, 0, tasks, shots + QUERIES), shots)
    learner = work.learner
    own = method_noise(0, "test", 0, tasks, learner.method.noise(learner.inner_loop))
    losses, _ = evaluate_tasks(learner, work.parameters, drawn, own, vectorised=True)
    by_curve = losses[:, -1].double().view(CURVES, REPEATS).mean(1)
    return f"{by_curve.mean():.2f} ± {1.96 * by_curve.std(correction=0) / CURVES**0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60_000)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--shots", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("outputs/sinusoid_table"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(asked.jobs) as pool:
        pairs = [(method, shots) for shots in asked.shots for method in asked.methods]
        list(pool.map(lambda pair: train(asked.out, pair[0], pair[1], asked.iterations), pairs))
    print("| trained with | method | " + " | ".join(f"{shots}-shot" for shots in TEST_SHOTS) + " |")
    print("| --- " * (2 + len(TEST_SHOTS)) + "|")
    for trained in asked.shots:
        for method in asked.methods:
            cells = [test(asked.out, method, trained, shots) for shots in TEST_SHOTS]
            print(f"| {trained} | {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
