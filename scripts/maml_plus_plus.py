"""MAML with each piece of MAML++ on and off, each trained for the same time on Omniglot 20-way 1-shot.

python -m scripts.maml_plus_plus DATA_DIR [--minutes N] [--folder FOLDER] [--only NAME ...] [KEY=VALUE ...]

Trains two runs at a time, each with one process and one thread, stops each after so many minutes of processor time,
which other work on the machine does not shorten, and tests its best checkpoint by validation. Words at the end go to
every run. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

AT_ONCE = 2
PLAIN = [
    *("dataset=omniglot", "ways=20", "shots=1", "queries=2", "inner_loop=3", "meta_batch=4", "iterations=100000"),
    *("outer_schedule=constant", "engine.workers=1"),
    *("eval.every=50", "eval.validation_tasks=40", "eval.queries=5", "eval.tasks=300"),
]
PIECES = {
    "MAML": ["eval.ensemble=5"],
    "multi-step loss": ["multi_step_loss=150"],
    "a rate for each tensor and step": ["learn_lr=tensor_step"],
    "statistics of the support set": ["batch_norm=support"],
    "statistics and affine of each step": ["batch_norm=per_step"],
    "first order for 100 steps": ["first_order_steps=100"],
    "cosine schedule": ["outer_schedule=cosine"],
    "multi-step loss, rates, cosine": ["multi_step_loss=150", "learn_lr=tensor_step", "outer_schedule=cosine"],
}


def command(words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "metarun", *words, f"hydra.run.dir={folder}"]
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL)


def trained(name: str, words: Sequence[str], folder: Path, minutes: float) -> Path:
    """The run folder of a run that was stopped after so many minutes of processor time, or has come to its end."""
    place = folder / name.replace(" ", "-").replace(",", "")
    with command([*PLAIN, *PIECES[name], *words], place) as process:
        while process.poll() is None and processor_seconds(process.pid) < 60 * minutes:
            time.sleep(1)
        process.send_signal(signal.SIGTERM)
    return place


def processor_seconds(process: int) -> float:
    """Of a running process; 0 where it has just ended."""
    told = subprocess.run(["ps", "-o", "time=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    days, _, clock = told.rpartition("-")
    seconds = 0.0
    for part in clock.split(":") if clock else ():
        seconds = 60 * seconds + float(part)
    return seconds + 86400 * int(days or 0)


def tested(place: Path, ensemble: int = 1) -> dict[str, object]:
    found = place / f"test-{ensemble}"
    words = ["mode=evaluate", f"checkpoint={place}", f"eval.ensemble={ensemble}", "eval.inner_loop=3"]
    with command(words, found) as process:
        if process.wait():
            raise SystemExit(f"{place}: could not be tested")
    last = json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])
    return {**json.loads((found / "result.json").read_text()), "reached": last["step"]}


def row(name: str, result: dict) -> str:
    accuracy = f"{100 * result['mean']:.2f} ± {100 * result['ci95']:.2f} %"
    return f"| {name} | {accuracy} | {result['reached']} | {result['iterations']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path("outputs/maml_plus_plus") / time.strftime("%Y-%m-%d_%H-%M"))
    parser.add_argument("--only", nargs="*", default=list(PIECES), choices=list(PIECES))
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    chosen = parser.parse_args()
    words = [f"data_dir={chosen.data_dir}", *chosen.words]
    chosen.folder.mkdir(parents=True, exist_ok=True)
    timed = [name for name in chosen.only if "cosine" not in name]
    run = partial(trained, folder=chosen.folder, minutes=chosen.minutes)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        places = dict(zip(timed, pool.map(lambda name: run(name, words), timed), strict=True))
        if scheduled := [name for name in chosen.only if name not in timed]:  # over as many steps as MAML came to
            steps = tested(places["MAML"])["reached"]
            ends = [*words, f"iterations={steps}"]
            places |= dict(zip(scheduled, pool.map(lambda name: run(name, ends), scheduled), strict=True))
        results = dict(zip(places, pool.map(tested, places.values()), strict=True))
    print("| | test | outer steps (to the last line of metrics) | of the best |\n| --- | --- | --- | --- |")
    for name, result in results.items():
        print(row(name, result))
        if name == "MAML":
            print(row("MAML, an ensemble of its best 5", tested(places[name], 5)))


if __name__ == "__main__":
    main()
