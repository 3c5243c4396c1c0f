"""What each method costs against MAML: time of an outer step and peak memory, interleaved in one run.

python -m scripts.method_cost [GROUP=CHOICE ...] [KEY=VALUE ...]      the same words as metarun takes

Prints a Markdown table. Times are medians over steps that take turns; memory is a fresh process's peak (Linux only).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir

from metarun.cli import app, settings
from metarun.config.schema import Settings
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine.context import build_context
from metarun.training.trainer import Trainer

METHODS = {name: [f"method={name}"] for name in ("maml", "fomaml", "msgd", "mtnet", "warpgrad", "l2f", "anil", "boil")}
METHODS["tnet"] = ["method=mtnet", "method.mask=false"]
ROUNDS = 15


def composed(words: Sequence[str]) -> Settings:
    """What metarun makes of a command line."""
    with initialize_config_dir(str(app.config_folder()), version_base="1.3"):
        return settings.build(compose("config", list(words)))


def training(words: list[str], folder: str) -> Trainer:
    return Trainer(TaskParallelGroup(build_context(composed(words))), Path(folder))


def peak(words: list[str]) -> float:
    """MiB that a process of its own holds at the peak of an outer step, torch and the data included."""
    line = [sys.executable, "-m", "scripts.method_cost", "--peak", *words]
    return float(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_here(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = training(words, folder)
        run.outer_step()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for _ in range(3):
            run.outer_step()
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(int(peak.split()[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the same words as metarun takes")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    words = arguments.overrides
    if arguments.peak:
        return peak_here(words)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: training([*words, *chosen], folder) for name, chosen in METHODS.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(ROUNDS + 2):
            for name, run in runs.items():
                began = time.perf_counter()
                run.outer_step()
                if number >= 2:  # the first rounds warm up
                    times[name].append(time.perf_counter() - began)
    memory = {name: peak([*words, *chosen]) for name, chosen in METHODS.items()}
    median = {name: statistics.median(entries) for name, entries in times.items()}
    print(f"{os.cpu_count()} cores; {' '.join(words)}\n")
    print("| method | ms a step | times MAML's | MiB at the peak | times MAML's |\n| --- | --- | --- | --- | --- |")
    for name in METHODS:
        time_ratio, memory_ratio = median[name] / median["maml"], memory[name] / max(memory["maml"], 1e-9)
        print(f"| {name} | {1e3 * median[name]:.1f} | {time_ratio:.2f} | {memory[name]:.0f} | {memory_ratio:.2f} |")


if __name__ == "__main__":
    main()
