"""An outer step of metarun beside a plain PyTorch loop and the libraries that are installed, taking turns.

python -m scripts.benchmark [--metarun "KEY=VALUE ..."]... [--only WORD] [--rounds N] [--device cuda] [--profile]

An outer step is the inner loops, the meta-gradient and Adam; metarun's draws its tasks as well. All contenders start
from the same weights and tasks and find the same meta-gradient, which is checked. Each has a process of its own. Prints
Markdown: medians over rounds, and the median over rounds of the ratio to the eager loop in the same round. Memory is of
whole processes (Linux only). Peers: higher, jax with optax, learn2learn; one that is not there is left out. JAX takes
all cores whatever OMP_NUM_THREADS says: `taskset -c 0 python -m scripts.benchmark` gives each contender the same one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from scripts.benchmark_contender import Ended, Handle, start
from scripts.benchmark_works import WORKS, Work, prepare

YARDSTICK, EXACT = "eager loop", "eager loop in float64"
BARE, PRODUCT = "bare convolutions", "matrix product"
PEERS = {"higher": ("higher",), "learn2learn": ("learn2learn",), "jax": ("JAX", "JAX, scanned")}
NEEDED = {"jax": ("jax", "optax")}  # modules, where they are not called like the peer
EVALUATED = ("higher", "JAX")  # peers whose evaluation is measured
ROUND = 0.3  # seconds that a contender's turn takes, or one step
AGREEMENT = 1e-3  # relative, of float32 meta-gradients; where rounding does more to the yardstick's own,
ROUNDINGS = 3  # so many times that: it turns ReLUs and maxima, of which large pictures have millions
NOTHING = 1e-3  # of the whole gradient: what is below it, as of a bias before a norm, is rounding and no scale
OPERATORS = 12  # lines of a profile


@dataclass
class Row:
    """What was measured of a contender."""

    label: str
    step: list[float] = field(default_factory=list)  # seconds, by round
    peak: float | None = None  # MiB
    idle: float | None = None
    difference: float | None = None  # from the eager loop's first step
    rounding: float | None = None  # the eager loop's own difference from float64, where AGREEMENT may ask too much
    operations: float = 0.0  # floating-point, where it says so itself
    profile: list[tuple[str, int, float]] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.step)

    @property
    def agrees(self) -> bool:
        return self.difference is None or self.difference <= max(AGREEMENT, ROUNDINGS * (self.rounding or 0))


def measure(
    work: Work, metaruns: Sequence[str], peers: Iterable[str], rounds: int, device: str, folder: Path, profile: bool
) -> list[Row]:
    """The yardstick first, then metarun with each of the `metaruns` words, then peers, then what bounds them.

    Raises:
        Ended: metarun, the yardstick or a bound cannot be had; a peer that cannot is left out and told.
    """
    problem, words = prepare(work, folder)
    wanted = [(YARDSTICK, YARDSTICK, [])] if work.kind != "draw" else []
    wanted += [("metarun", f"metarun {more}".strip(), [*words, *more.split()]) for more in metaruns]
    wanted += [(name, name, []) for name in competing(work, peers)]
    wanted += [(name, name, []) for name in (BARE, PRODUCT) if work.kind == "train" and work.convolutional]
    with ExitStack() as stack:
        started = [start(name, label, device, problem, given) for name, label, given in wanted]
        for handle in started:
            stack.callback(handle.close)
        handles, rows = [], []
        for handle in started:
            try:
                handle.hear()  # that it is ready
                row = Row(handle.label)
                examine(handle, row, folder)
            except Ended as error:
                if handle.label not in sum(PEERS.values(), ()):
                    raise Ended(f"{handle.label}: {error}") from error
                print(f"{work.name}: {handle.label} is left out: {error}\n")
                continue
            handles.append(handle)
            rows.append(row)
        if not all(row.agrees for row in rows):
            exact = start(EXACT, EXACT, device, problem, [])
            stack.callback(exact.close)
            exact.hear()
            found = Row(EXACT)
            examine(exact, found, folder)
            for row in rows:
                row.rounding = found.difference
        take_turns(handles, rows, rounds)
        for handle, row in zip(handles, rows, strict=True):
            if handle.label not in (BARE, PRODUCT):
                row.peak, row.idle = handle.ask("peak")
            if profile and handle.label.startswith((YARDSTICK, "metarun")):
                row.profile = handle.ask("profile")
    return rows


def competing(work: Work, peers: Iterable[str]) -> list[str]:
    """The contenders of those peers that can do this work."""
    if work.kind == "draw":
        return []
    names = [name for peer in peers if peer != "jax" or work.jax for name in PEERS[peer]]
    if work.kind == "evaluate":
        return [name for name in names if name in EVALUATED]
    return [name for name in names if name != "JAX, scanned" or not work.convolutional]


def examine(handle: Handle, row: Row, folder: Path) -> None:
    """What the first step finds, against the eager loop's, which is asked first."""
    path, expected = handle.ask("first"), folder / "yardstick.npz"
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    if "operations" in found:
        row.operations = float(found["operations"])
    elif row.label == YARDSTICK:
        Path(path).replace(expected)
        row.difference = 0.0
    elif found:
        with np.load(expected) as file:
            row.difference = difference(found, {name: file[name] for name in file.files})


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest over tensors of the difference's norm against the tensor's; infinite where names differ."""
    if found.keys() != expected.keys():
        return float("inf")
    norms = {name: float(np.linalg.norm(entry)) for name, entry in expected.items()}
    whole = float(np.linalg.norm(list(norms.values())))
    scales = {name: norm if norm > NOTHING * whole else whole for name, norm in norms.items()}
    return max(float(np.linalg.norm(found[name] - entry)) / scales[name] for name, entry in expected.items())


def take_turns(handles: Sequence[Handle], rows: Sequence[Row], rounds: int) -> None:
    """Each contender does its steps in every round, beginning with another one each time; the first calls warm up."""
    counts = []
    for handle in handles:
        handle.ask("steps", 1)
        seconds, done = handle.ask("steps", 1)
        counts.append(max(1, int(ROUND * done / seconds)))
        handle.ask("steps", counts[-1])
    order = list(range(len(handles)))
    for number in range(rounds):
        for place in order[number % len(order) :] + order[: number % len(order)]:
            seconds, done = handles[place].ask("steps", counts[place])
            rows[place].step.append(seconds / done)


# --- tables ------------------------------------------------------------------------------------------------


def ratio(row: Row, other: Row) -> float:
    return statistics.median(one / two for one, two in zip(row.step, other.step, strict=True))


def spread(row: Row) -> str:
    """Half the distance between the quartiles, in per cent of the median."""
    low, _, high = np.quantile(row.step, (0.25, 0.5, 0.75))
    return f"{50 * (high - low) / row.median:.0f} %"


def show(work: Work, rows: Sequence[Row], tasks: int) -> str:
    by_label = {row.label: row for row in rows}
    bare, product = by_label.pop(BARE, None), by_label.pop(PRODUCT, None)
    yardstick = by_label.get(YARDSTICK)
    columns = ["contender", "ms a step", "±", "tasks a second", "MiB at the peak", "before the first step"]
    columns += ["times the eager loop", "differs by"] if yardstick else []
    columns += ["GFLOP/s", "times bare convolutions"] if bare else []
    lines = [f"### {work.title}", "", line(columns), line(["---"] * len(columns))]
    for row in by_label.values():
        entries = [row.label, f"{1e3 * row.median:.2f}", spread(row), f"{tasks / row.median:.0f}"]
        entries += ["" if held is None else f"{held:.0f}" for held in (row.peak, row.idle)]
        if yardstick:
            entries += [f"{ratio(row, yardstick):.2f}", f"{row.difference:.0e}"]
        if bare:
            entries += [f"{bare.operations / row.median / 1e9:.0f}", f"{ratio(row, bare):.2f}"]
        lines.append(line(entries))
    if yardstick and yardstick.rounding is not None:
        lines += ["", f"In float64 the eager loop's own first step differs by {yardstick.rounding:.0e}."]
    if bare and product:
        rates = [one.operations / one.median / 1e9 for one in (bare, product)]
        lines += [
            "",
            f"Its convolutions are {bare.operations / 1e9:.1f} GFLOP and alone take {1e3 * bare.median:.1f} ms "
            f"({rates[0]:.0f} GFLOP/s); a matrix product of 2048x2048 runs at {rates[1]:.0f} GFLOP/s.",
        ]
    for row in rows:
        if row.profile:
            lines += ["", *profiled(row)]
    return "\n".join([*lines, ""])


def profiled(row: Row) -> list[str]:
    total = sum(own for _, _, own in row.profile)
    lines = [f"Where a step of {row.label} spends its time:", "", "| operator | calls | ms by itself | share |"]
    return [
        *lines,
        line(["---"] * 4),
        *(
            line([f"`{name}`", str(calls), f"{own:.2f}", f"{own / total:.0%}"])
            for name, calls, own in row.profile[:OPERATORS]
        ),
    ]


def line(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def tasks_of(work: Work) -> int:
    return next(int(word.partition("=")[2]) for word in work.words if word.startswith("meta_batch="))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metarun", action="append", help='words for metarun, such as "engine.workers=2"; repeatable')
    parser.add_argument("--only", default="", help=f"works whose name holds this: {', '.join(w.name for w in WORKS)}")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--profile", action="store_true", help="also the operators that took the longest")
    chosen = parser.parse_args()
    works = [work for work in WORKS if chosen.only in work.name]
    if not works or chosen.rounds < 1:
        parser.error(f"--only {chosen.only}: no such work" if not works else "--rounds: must be 1 or more")
    missing = [p for p in chosen.peers if any(not importlib.util.find_spec(m) for m in NEEDED.get(p, (p,)))]
    peers = [peer for peer in chosen.peers if peer not in missing]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"{torch.get_num_threads()} threads on {cores} cores"
    machine = torch.cuda.get_device_name() if chosen.device == "cuda" else threads
    left_out = f"; not installed: {', '.join(missing)}" if missing else ""
    print(f"{machine}, torch {torch.__version__}, {chosen.rounds} rounds{left_out}\n")
    apart = []
    with tempfile.TemporaryDirectory() as folder:
        for work in works:
            metaruns = chosen.metarun or [""]
            rows = measure(work, metaruns, peers, chosen.rounds, chosen.device, Path(folder), chosen.profile)
            print(show(work, rows, tasks_of(work)), flush=True)
            apart += [f"{work.name}: {row.label}" for row in rows if not row.agrees]
    if apart:
        sys.exit(f"these compute something else than the eager loop: {'; '.join(apart)}")


if __name__ == "__main__":
    main()
