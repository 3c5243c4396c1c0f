"""Kill a run again and again, start it again each time: its end must be that of a run that nobody disturbed.

python -m scripts.survive_kills [--methods maml ...] [--kills 50] [--at-once 2] [--signal KILL] [KEY=VALUE ...]

For each method a small run is first left alone, then, in another folder, killed at random moments: every sixth while it
starts up, the last sixth in the final test, the others wherever it is. Each time it is started again with resume=auto,
and at last left to end. Checkpoints, metrics.jsonl and result.json must be equal to the bit, but for seconds and folder
names. Other words go to metarun as they are. `in a save` counts kills that left a half-written file under another
name, `left behind` the files of that kind that are still there at the end. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from metarun.checkpointing import store
from metarun.methods import METHODS
from scripts.survival import SMALL, Command, metrics, run_differences, table

PHASES = ("start-up", "training", "validation", "test")
SHARE = 6  # of so many kills one falls into the start-up, and one of the last into the final test
STEPS_PER_KILL = 40  # of the run; about what it gets on between two kills
EVERY = ["eval.every=40", "save.every=5", "eval.validation_tasks=400"]
TEST_TASKS = 6000  # takes longer than a life may be, so that no run ends before it is killed often enough
LONGEST = 0.4  # of the time of the final test: the longest life of a run that is under way
TRIES = 4  # each with a run twice as long as before
UNDER_WAY = r"going on from .*step-(\d+)\.safetensors|step "  # the first line of a run that is under way


class TooShort(Exception):
    """A run ended before it was killed often enough."""


@dataclass
class Whole:
    """A run that nobody disturbed."""

    words: list[str]
    folder: Path
    iterations: int
    seconds: float
    start_up: float  # seconds
    test: float  # seconds


@dataclass
class Report:
    """What befell one method's run."""

    name: str
    phases: Counter[str] = field(default_factory=Counter)  # where the kills fell
    in_saves: int = 0
    left_behind: int = 0
    resumed: list[int] = field(default_factory=list)  # the steps that it went on from
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0  # of the sittings that ended in a kill

    def row(self) -> list[object]:
        where = [self.phases[phase] for phase in PHASES]
        resumed = f"{len(self.resumed)} times at {len(set(self.resumed))} steps"
        time_each = f"{self.seconds / max(sum(where), 1):.2f}"
        equal = "no" if self.wrong else "yes"
        return [self.name, sum(where), *where, self.in_saves, resumed, self.left_behind, equal, time_each]


HEAD = ["method", "kills", *PHASES, "in a save", "resumed", "left behind", "equal", "seconds a kill"]


def sitting(words: Sequence[str], folder: Path) -> Command:
    """Start the run, or go on with it."""
    return Command([*words, "resume=auto", f"hydra.run.dir={folder.name}"], folder.parent)


def left_alone(words: Sequence[str], folder: Path, kills: int, length: int = 1) -> Whole:
    """Run from beginning to end; `length` times as long as `kills` are expected to need."""
    iterations = length * STEPS_PER_KILL * kills
    words = [*SMALL, *EVERY, f"iterations={iterations}", f"eval.tasks={length * TEST_TASKS}", *words]
    run = sitting(words, folder)
    if run.end() != 0:
        raise RuntimeError(f"the undisturbed run failed: {' '.join(words)}: {run.last_words()}")
    seconds = time.perf_counter() - run.began
    under_way, tested = run.first(UNDER_WAY), run.first(r"\w+ by inner step")
    assert under_way is not None and tested is not None
    validated = max(at for at, line in run.said if line.startswith("step "))
    return Whole(words, folder, iterations, seconds, under_way, tested - validated)


@dataclass
class Moment:
    """When a run is killed: so many seconds after its start, or after a line whose beginning matches."""

    seconds: float
    line: str | None = None


def moments(chance: random.Random, kills: int, whole: Whole) -> list[Moment]:
    """So many moments, in the order in which the kills come."""
    tested = rf"going on from .*step-0*{whole.iterations}\.safetensors|step {whole.iterations}: "
    chosen = []
    for life in range(kills):
        if life % SHARE == 0:
            chosen.append(Moment(chance.uniform(0, whole.start_up)))
        else:
            last = life >= kills - kills // SHARE
            chosen.append(Moment(chance.uniform(0, LONGEST * whole.test), tested if last else UNDER_WAY))
    return chosen


def kill(whole: Whole, folder: Path, number: signal.Signals, moment: Moment, report: Report) -> None:
    """Start the run in `folder`, or go on with it, and kill it at a moment.

    Raises:
        TooShort: it ended first.
    """
    run = sitting(whole.words, folder)
    since = 0.0 if moment.line is None else run.wait_for(moment.line)
    if since is not None:
        run.wait_until(since + moment.seconds)
    status = run.end(number)
    if status == 0:
        raise TooShort
    if status not in (-number, 128 + number):
        report.wrong.append(f"ended by itself with status {status}: {run.last_words()}")
    if run.first(UNDER_WAY) is None:
        report.phases["start-up"] += 1
    else:
        report.phases[phase(folder, whole.iterations)] += 1
    report.in_saves += any(folder.rglob(f".*.{run.process.pid}.part"))
    note_resume(run, report)


def note_resume(run: Command, report: Report) -> None:
    found = [re.match(UNDER_WAY, line) for _, line in run.said]
    report.resumed += [int(match[1]) for match in found if match and match[1]]


def phase(folder: Path, iterations: int) -> str:
    """What a run that was under way was doing, told from its files."""
    state = store.load(store.latest_intact_checkpoint(folder))
    validated = {line["step"] for line in metrics(folder) if isinstance(line, dict) and line["split"] == "val"}
    if state.validation_due and state.step not in validated:
        return "validation"
    return "test" if state.step == iterations else "training"


def survive(name: str, whole: Whole, folder: Path, kills: int, number: signal.Signals, seed: int) -> Report:
    """The same run in another folder, killed `kills` times and then left to end.

    Raises:
        TooShort: it ended before that.
    """
    report = Report(name)
    began = time.perf_counter()
    for moment in moments(random.Random(f"{seed} {name}"), kills, whole):
        kill(whole, folder, number, moment, report)
    report.seconds = time.perf_counter() - began
    last = sitting(whole.words, folder)
    if last.end() != 0:
        report.wrong.append(f"the last sitting failed: {last.last_words()}")
    note_resume(last, report)
    report.left_behind = len(list(folder.rglob(".*.part")))
    report.wrong += run_differences(whole.folder, folder)
    return report


def survive_long_enough(name: str, words: Sequence[str], kills: int, number: signal.Signals, seed: int) -> Report:
    """Both in a temporary folder, with a longer run where one ended before it was killed often enough."""
    for attempt in range(TRIES):
        with tempfile.TemporaryDirectory() as place:
            whole = left_alone(words, Path(place) / "whole", kills, 2**attempt)
            try:
                report = survive(name, whole, Path(place) / "killed", kills, number, seed)
            except TooShort:
                print(f"{name}: ended before it was killed {kills} times; again, twice as long", flush=True)
                continue
        told = "; ".join(report.wrong[:5]) or "equal"
        print(f"{name}: {told}; {whole.iterations} steps, {whole.seconds:.1f} s left alone", flush=True)
        return report
    return Report(name, wrong=[f"ended before it was killed {kills} times, {TRIES} times"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[name for name in METHODS if name != "pretrain"],
        choices=METHODS,
        metavar="METHOD",
    )
    parser.add_argument("--kills", type=int, default=50, help="of each method")
    parser.add_argument("--at-once", type=int, default=2, help="methods at a time")
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM", "INT", "USR1"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="for metarun, before --methods or behind --")
    asked = parser.parse_args()
    number = signal.Signals[f"SIG{asked.signal}"]
    with ThreadPoolExecutor(asked.at_once) as pool:

        def one(method: str) -> Report:
            return survive_long_enough(method, [f"method={method}", *asked.words], asked.kills, number, asked.seed)

        began = time.perf_counter()
        reports = list(pool.map(one, asked.methods))
    print(f"\n{asked.kills} times SIG{asked.signal}, {asked.at_once} at once: {time.perf_counter() - began:.0f} s\n")
    print(table([HEAD, *(report.row() for report in reports)]))
    return int(any(report.wrong for report in reports))


if __name__ == "__main__":
    sys.exit(main())
