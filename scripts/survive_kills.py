"""Kill a run again and again, start it again each time: its end must be that of a run that nobody disturbed.

python scripts/survive_kills.py [--methods maml ...] [--kills 50] [--at-once 2] [--signal KILL] [KEY=VALUE ...]

For each method a small run is first left alone, then, in another folder, killed at random moments (every sixth while it
starts up, the others in training, validations, saves and the final test), each time started again with resume=auto, and
at last left to end. Checkpoints, metrics.jsonl and result.json must be equal to the bit, but for seconds and folder
names. Other words go to metarun as they are. `in a save` counts kills that left a half-written file under another
name, `left behind` the files of that kind that are still there at the end. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from survival import SMALL, Command, metrics, run_differences, table

from metarun import checkpoint
from metarun.methods import METHODS

PHASES = ("start-up", "training", "validation", "test")
START_UP_EVERY = 6  # of so many kills one falls into the start-up
STEPS_PER_KILL = 40  # about 3/4 of what a run gets on between kills, so that the last ones fall into the test
EVERY = ["eval.every=40", "save.every=2", "eval.validation_tasks=400"]
TEST_TASKS = 4000  # takes about as long as a life may be, so that no run ends before it is killed often enough
LONGEST = 0.7  # of the time of the final test: the longest life behind the start-up
TRIES = 4  # each with a run twice as long as before
GOING = ("going on from ", "step ")  # the first lines of a run that is under way


class TooShort(Exception):
    """A run ended before it was killed often enough."""


@dataclass
class Report:
    """What befell one method's run."""

    name: str
    phases: Counter[str] = field(default_factory=Counter)  # where the kills fell
    in_saves: int = 0
    left_behind: int = 0
    resumed: list[int] = field(default_factory=list)  # the steps that it went on from
    wrong: list[str] = field(default_factory=list)
    iterations: int = 0
    alone: float = 0.0  # seconds of the run that nobody disturbed
    seconds: float = 0.0  # of the kills, without that run and the last sitting

    def row(self, kills: int) -> list[object]:
        where = [self.phases[phase] for phase in PHASES]
        resumed = f"{len(self.resumed)} times at {len(set(self.resumed))} steps of {self.iterations}"
        time_each = f"{self.seconds / max(kills, 1):.2f}"
        equal = "no" if self.wrong else "yes"
        return [self.name, sum(where), *where, self.in_saves, resumed, self.left_behind, equal, time_each]


HEAD = ["method", "kills", *PHASES, "in a save", "resumed", "left behind", "equal", "seconds a kill"]


def sitting(words: Sequence[str], cwd: Path, folder: Path, report: Report) -> Command:
    """Start the run, or go on with it."""
    return Command([*words, "resume=auto", f"hydra.run.dir={folder.name}"], cwd)


def left_alone(words: Sequence[str], folder: Path, report: Report) -> tuple[float, float]:
    """Run from beginning to end; seconds of its start-up and of its final test."""
    run = sitting(words, folder.parent, folder, report)
    if run.end() != 0:
        raise RuntimeError(f"{report.name}: the undisturbed run failed: {run.last_words()}")
    report.alone = time.perf_counter() - run.began
    under_way = next(at for at, line in run.said if line.startswith(GOING))
    tested, validated = run.when("mse by inner step", "accuracy by inner step"), run.when("step ")
    assert tested is not None and validated is not None
    return under_way, tested - validated


def kill(
    words: Sequence[str], folder: Path, report: Report, number: signal.Signals, start_up: float | None, later: float
) -> None:
    """Start the run and kill it `start_up` seconds after that, or where this is None, `later` than it is under way.

    Raises:
        TooShort: it ended first.
    """
    run = sitting(words, folder.parent, folder, report)
    if start_up is not None:
        run.wait_until(start_up)
    elif run.wait_for(*GOING):
        under_way = next(at for at, line in run.said if line.startswith(GOING))
        run.wait_until(under_way + later)
    status = run.end(number)
    if status == 0:
        raise TooShort
    if status not in (-number, 128 + number):
        report.wrong.append(f"ended by itself with status {status}: {run.last_words()}")
    if run.when(*GOING) is None:
        report.phases["start-up"] += 1
    else:
        report.phases[phase(folder, report.iterations)] += 1
    report.in_saves += any(folder.rglob(f".*.{run.process.pid}.part"))
    note_resume(run, report)


def note_resume(run: Command, report: Report) -> None:
    report.resumed += [int(line.rpartition("-")[2].removesuffix(".pt")) for _, line in run.said if line.startswith(GOING[0])]


def phase(folder: Path, iterations: int) -> str:
    """What a run that was under way was doing, told from its files."""
    content = checkpoint.load(checkpoint.newest(folder))
    validated = {line["step"] for line in metrics(folder) if isinstance(line, dict) and line["split"] == "val"}
    if content["due"] and content["step"] not in validated:
        return "validation"
    return "test" if content["step"] == iterations and not content["due"] else "training"


def survive(
    name: str, words: Sequence[str], kills: int, number: signal.Signals, seed: int, place: Path, length: int = 1
) -> Report:
    """One run left alone and one killed `kills` times, in folders below `place`.

    Raises:
        TooShort: the run, `length` times as long as usual, ended before that.
    """
    report = Report(name, iterations=length * STEPS_PER_KILL * kills)
    words = [*SMALL, *EVERY, f"iterations={report.iterations}", f"eval.tasks={length * TEST_TASKS}", *words]
    whole, killed = place / "whole", place / "killed"
    start_up, test = left_alone(words, whole, report)
    moments = random.Random(f"{seed} {name}")
    began = time.perf_counter()
    for life in range(kills):
        early = moments.uniform(0, start_up) if life % START_UP_EVERY == 0 else None
        kill(words, killed, report, number, early, moments.uniform(0, LONGEST * test))
    report.seconds = time.perf_counter() - began
    last = sitting(words, place, killed, report)
    if last.end() != 0:
        report.wrong.append(f"the last sitting failed: {last.last_words()}")
    note_resume(last, report)
    report.left_behind = len(list(killed.rglob(".*.part")))
    report.wrong += run_differences(whole, killed)
    return report


def survive_long_enough(name: str, words: Sequence[str], kills: int, number: signal.Signals, seed: int) -> Report:
    """The same in a temporary folder, with a longer run where one ended before it was killed often enough."""
    for attempt in range(TRIES):
        with tempfile.TemporaryDirectory() as place:
            try:
                report = survive(name, words, kills, number, seed, Path(place), 2**attempt)
            except TooShort:
                print(f"{name}: ended before it was killed {kills} times; again, twice as long", flush=True)
                continue
        print(f"{name}: {'; '.join(report.wrong[:5]) or 'equal'}; {report.alone:.1f} s left alone", flush=True)
        return report
    return Report(name, wrong=[f"ended before it was killed {kills} times, {TRIES} times"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
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
    print(table([HEAD, *(report.row(asked.kills) for report in reports)]))
    return int(any(report.wrong for report in reports))


if __name__ == "__main__":
    sys.exit(main())
