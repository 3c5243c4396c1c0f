"""A contender of the benchmark in a process of its own, which does steps when asked to and sleeps otherwise.

So one's allocator, threads and memory do not touch another's, and contenders can take turns. Questions and answers are
lines of JSON on a pipe: see `serve`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]  # that modules of scripts are found from
STARTS = {  # module and function that make each; a module is only imported in the process that needs it
    "metarun": ("scripts.benchmark_metarun", "start"),
    "eager loop": ("scripts.benchmark_peers", "eager"),
    "eager loop in float64": ("scripts.benchmark_peers", "eager_in_float64"),
    "higher": ("scripts.benchmark_peers", "with_higher"),
    "learn2learn": ("scripts.benchmark_peers", "with_learn2learn"),
    "JAX": ("scripts.benchmark_jax", "start"),
    "JAX, scanned": ("scripts.benchmark_jax", "scanned"),
    "bare convolutions": ("scripts.benchmark_floor", "convolutions"),
    "matrix product": ("scripts.benchmark_floor", "product"),
}
SIDES = ("support_data", "support_target", "query_data", "query_target")
MEASURED = 3  # steps whose peak of memory is taken


class Contender(NamedTuple):
    """What a contender can be asked for."""

    first: Callable[[], dict[str, np.ndarray]]  # what the first step finds, by name: to be compared, changes nothing
    steps: Callable[[int], int]  # do about so many steps, return how many when they are done


class Problem(NamedTuple):
    """What all contenders compute, read from a file."""

    spec: dict[
        str, Any
    ]  # kind, backbone, inner_loop, rates, second_order, adapted: the names of the weights that adapt
    parameters: dict[str, np.ndarray]
    tasks: tuple[np.ndarray, ...]  # in the order of SIDES, each [meta-batches, tasks, ...]

    def batch(self, number: int) -> tuple[np.ndarray, ...]:
        """A meta-batch; they come again after the last."""
        return tuple(side[number % len(side)] for side in self.tasks)


def read(path: str) -> Problem:
    with np.load(path) as file:
        parameters = {name.partition("/")[2]: file[name] for name in file.files if name.startswith("parameter/")}
        return Problem(json.loads(str(file["spec"])), parameters, tuple(file[side] for side in SIDES))


# --- in the contender's process ----------------------------------------------------------------------------


def serve() -> None:
    """Read what to be (name, device, problem, words), then answer until the pipe is closed.

    {"ask": "first"}              where the arrays that the first step finds have been saved, as .npz
    {"ask": "steps", "count": 3}  [seconds, steps done]
    {"ask": "peak"}               [MiB at the peak of some steps, MiB before the first], null where it cannot be told
    {"ask": "profile"}            [[operator, calls, ms by itself], ...] of one step
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed does not disturb the answers
    role = json.loads(sys.stdin.readline())
    module, function = STARTS[role["name"]]
    with ExitStack() as stack:
        contender = getattr(importlib.import_module(module), function)(role, stack)
        idle = memory("VmRSS")
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(answer(contender, role, idle, **asked)), file=answers, flush=True)


def answer(contender: Contender, role: dict[str, Any], idle: float | None, ask: str, count: int = 0) -> Any:
    if ask == "first":
        path = f"{role['problem']}.{os.getpid()}.npz"
        np.savez(path, **contender.first())  # type: ignore[arg-type]
        return path
    if ask == "peak":
        return [peak(contender, role["device"]), idle if role["device"] == "cpu" else 0]
    if ask == "profile":
        return profile(contender)
    began = time.perf_counter()
    done = contender.steps(count)
    return [time.perf_counter() - began, done]


def family(process: int) -> Iterator[int]:
    """A process and those that it has started. Linux only."""
    yield process
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def memory(kind: str) -> float | None:
    """MiB that this process and those that it has started hold: now ("VmRSS") or at their peaks ("VmHWM")."""
    if not Path("/proc/self/status").exists():
        return None
    total = 0.0
    for process in family(os.getpid()):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        total += next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))
    return total


def peak(contender: Contender, device: str) -> float | None:
    """MiB: of the processes on a CPU; what the allocator has given out on a GPU."""
    if device != "cpu":
        if "jax" in sys.modules:
            contender.steps(MEASURED)
            return sys.modules["jax"].devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
        cuda = sys.modules["torch"].cuda
        cuda.reset_peak_memory_stats()
        contender.steps(MEASURED)
        return cuda.max_memory_allocated() / 2**20
    if memory("VmRSS") is None:
        return None
    for process in family(os.getpid()):
        Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak begins anew
    contender.steps(MEASURED)
    return memory("VmHWM")


def profile(contender: Contender) -> list[tuple[str, int, float]]:
    """The torch operators of one step with the time that each took itself, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    on_gpu = sys.modules["torch"].cuda.is_initialized()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with recorded(activities=activities) as found:
        contender.steps(1)

    def own(event: Any) -> float:
        return (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3

    events = sorted(found.key_averages(), key=own, reverse=True)
    return [(event.key, event.count, own(event)) for event in events]


# --- in the process that asks ------------------------------------------------------------------------------


class Ended(Exception):
    """A contender's process has ended; what it printed tells why."""


@dataclass
class Handle:
    """A contender that can be asked; `label` is what tables call it."""

    label: str
    process: subprocess.Popen[str]
    log: Path  # what it printed

    def ask(self, question: str, count: int = 0) -> Any:
        """Raises Ended."""
        self.say({"ask": question, "count": count})
        return json.loads(self.hear())

    def say(self, content: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            print(json.dumps(content), file=self.process.stdin, flush=True)
        except BrokenPipeError as error:
            raise Ended(self.last_words()) from error

    def hear(self) -> str:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return line
        raise Ended(self.last_words())

    def last_words(self) -> str:
        self.process.wait()
        return (self.log.read_text().strip().splitlines() or ["it said nothing"])[-1]

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # of one that has ended
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def start(name: str, label: str, device: str, problem: Path, words: list[str]) -> Handle:
    """A contender, which says "ready" when it can be asked. Raises Ended where it has ended already."""
    log = problem.with_name(f"{problem.stem} {label.replace('/', '_')}.log")
    on_gpu = {
        "NVIDIA_TF32_OVERRIDE": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }  # float32, and no more than it needs
    with log.open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmark_contender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            text=True,
            env={**os.environ, **on_gpu},
            cwd=ROOT,
        )
    handle = Handle(label, process, log)
    handle.say({"name": name, "device": device, "problem": str(problem), "words": words})
    return handle


if __name__ == "__main__":
    sys.modules["scripts.benchmark_contender"] = sys.modules["__main__"]  # one module, however it is imported
    serve()
