"""What the survive_* programs share: a small run, the command as a process, and whether two run folders hold the same.

Everything that a run leaves is compared to the bit, whatever entries checkpoints and results come to hold; only the
seconds that it took and the names of folders are free.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch

import metarun
from metarun.checkpointing import store
from metarun.utils.run_outputs import RESULT, read_result

SMALL = ["dataset=sinusoid", "backbone.hidden=[8]", "shots=5", "queries=5", "eval.queries=5", "meta_batch=4"]
FREE = ("seconds", "checkpoint")  # of what a run leaves: how long it took and where it lies
PATIENCE = 120.0  # seconds that a command may take to say what is waited for


class Command:
    """`python -m metarun WORDS` in a process group of its own, and the lines that it has said so far."""

    def __init__(self, words: Sequence[str], cwd: Path) -> None:
        package = Path(metarun.__file__).parents[1]  # so that the command runs the code that this program runs
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "metarun", *words],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(package)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said: list[tuple[float, str]] = []  # seconds since it was started, line
        self.ended = False
        self.heard = threading.Condition()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self.heard:
                    self.said.append((time.perf_counter() - self.began, line.rstrip("\n")))
                    self.heard.notify_all()
        with self.heard:
            self.ended = True
            self.heard.notify_all()

    def first(self, pattern: str) -> float | None:
        """Seconds from the start to the first line whose beginning matches, or None."""
        return next((at for at, line in self.said if re.match(pattern, line)), None)

    def wait_for(self, pattern: str) -> float | None:
        """Wait for a line whose beginning matches; None where the command ended without one."""
        with self.heard:
            self.heard.wait_for(lambda: self.ended or self.first(pattern) is not None, PATIENCE)
            return self.first(pattern)

    def wait_until(self, seconds: float) -> None:
        """Wait until that long after the start, or the end of the command."""
        with self.heard:
            self.heard.wait_for(lambda: self.ended, max(0.0, self.began + seconds - time.perf_counter()))

    def end(self, number: signal.Signals | None = None) -> int:
        """Send the whole group a signal, if one is given, and wait; the exit status, -N where signal N ended it."""
        if number is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        self.listener.join()
        return status

    def last_words(self) -> str:
        return self.said[-1][1] if self.said else "said nothing"


def run_differences(one: Path, two: Path) -> list[str]:
    """What two run folders do not have alike in their checkpoints, metrics.jsonl and result.json."""
    names, others = ({path.name for path in (folder / "checkpoints").glob(f"*{store.SUFFIX}")} for folder in (one, two))
    found = [f"checkpoints/{name}: only in one of both" for name in sorted(names ^ others)]
    for name in sorted(names & others):
        here, there = (store.load(folder / "checkpoints" / name) for folder in (one, two))
        found += differences(here, there, name)
    found += differences(metrics(one), metrics(two), "metrics.jsonl")
    if not (one / RESULT).exists() or not (two / RESULT).exists():
        return [*found, f"{RESULT}: missing"]
    return [*found, *differences(read_result(one), read_result(two), RESULT)]


def metrics(folder: Path) -> list[Any]:
    """The lines of metrics.jsonl; one that is no JSON stays as it is."""

    def read(line: str) -> Any:
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            return line

    path = folder / "metrics.jsonl"
    return [read(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def differences(one: Any, two: Any, place: str) -> Iterator[str]:
    """Where two nested contents differ, but for `FREE`; numbers and tensors must be equal to the bit."""
    if type(one) is not type(two):
        yield f"{place}: {type(one).__name__} and {type(two).__name__}"
    elif is_dataclass(one):
        yield from differences(vars(one), vars(two), place)
    elif isinstance(one, dict):
        for key in one.keys() ^ two.keys():
            yield f"{place}.{key}: only in one of both"
        for key in one.keys() & two.keys():
            if key not in FREE:
                yield from differences(one[key], two[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        if len(one) != len(two):
            yield f"{place}: {len(one)} and {len(two)} entries"
        for number, (here, there) in enumerate(zip(one, two, strict=False)):
            yield from differences(here, there, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor):
        if one.dtype != two.dtype or one.shape != two.shape or bits(one) != bits(two):
            yield f"{place}: tensors differ"
    elif isinstance(one, float):
        if not same_number(one, two):
            yield f"{place}: {one} and {two}"
    elif one != two:
        yield f"{place}: {one} and {two}"


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def same_number(one: float, two: float) -> bool:
    """To the bit, but that every NaN is alike: NaN equals NaN, and 0.0 is not -0.0."""
    return (math.isnan(one) and math.isnan(two)) or (one == two and math.copysign(1, one) == math.copysign(1, two))


def table(rows: Sequence[Sequence[object]]) -> str:
    """Markdown; the first row is the head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])
