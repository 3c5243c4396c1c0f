"""Kill a sweep in its middle and type it again: it must skip, go on and begin, and end as one that nobody disturbed.

python -m scripts.survive_sweep [--jobs 6] [--kills 1]

A --multirun sweep over seeds runs undisturbed; in another folder it is killed (SIGKILL, the whole process group) at a
random moment of a job in its middle, and started again with resume=auto in the same hydra.sweep.dir. Prints what became
of each job in each sitting, and the times. Exit status 1 if a finished job is not skipped, a stopped one does not go
on, or anything is not equal to the bit.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from metarun.checkpointing import store
from metarun.utils.run_outputs import RESULT
from scripts.survival import SMALL, Command, run_differences, table

WORDS = [*SMALL, "iterations=800", "eval.every=100", "save.every=20", "eval.validation_tasks=100", "eval.tasks=1000"]
NEXT = {"finished": "skipped", "stopped": "went on", "begun": "ran", "not begun": "ran"}  # what a sitting owes a job


def sweep(folder: Path, jobs: int) -> Command:
    seeds = ",".join(str(seed) for seed in range(jobs))
    words = ["--multirun", *WORDS, f"seed={seeds}", "resume=auto", f"hydra.sweep.dir={folder.name}"]
    return Command(words, folder.parent)


def state(run: Path) -> str:
    """One of `NEXT`: a job that was stopped left a checkpoint, one that was begun none."""
    if (run / RESULT).exists():
        return "finished"
    return "stopped" if store.list_step_checkpoints(run) else "begun" if run.exists() else "not begun"


def done_with(command: Command, run: Path) -> str:
    """What a sitting said that it did with a job."""
    place = f"{run.parent.name}/{run.name}"
    if command.first(f"{place} is finished already and skipped$") is not None:
        return "skipped"
    if command.first(f"going on from {place}/") is not None:
        return "went on"
    return "ran" if command.first(f"training .* in {place}$") is not None else "not reached"


def sitting(folder: Path, jobs: int, target: int | None, later: float) -> tuple[list[str], list[str], float]:
    """Start the sweep; kill it `later` than job `target` begins to train, or where this is None, let it end.

    Returns:
        What it did with each job, what was wrong, and the seconds.
    """
    runs = [folder / str(job) for job in range(jobs)]
    before = [state(run) for run in runs]
    command = sweep(folder, jobs)
    wrong = []
    if target is None:
        status = command.end()
        wrong += [f"ended with status {status}: {command.last_words()}"] if status else []
    elif (began := command.wait_for(f"training .* in {folder.name}/{target}$")) is None:
        wrong += [f"ended before it was killed: {command.last_words()}"]
    else:
        command.wait_until(began + later)
        command.end(signal.SIGKILL)
    seconds = time.perf_counter() - command.began
    did = [done_with(command, run) for run in runs]
    wrong += [
        f"{run.name} was {was} and {does}"
        for run, was, does in zip(runs, before, did, strict=True)
        if does != NEXT[was] and not (target is not None and does == "not reached")
    ]
    return [describe(does, state(run), command, run) for does, run in zip(did, runs, strict=True)], wrong, seconds


def describe(does: str, after: str, command: Command, run: Path) -> str:
    if does == "went on":
        line = next(line for _, line in command.said if line.startswith(f"going on from {run.parent.name}/{run.name}/"))
        step = re.search(r"step-0*(\d+)\.safetensors", line)
        does = f"went on from step {step[1] if step else '?'}"
    return f"{does}, killed" if after in ("stopped", "begun") and does != "not reached" else does


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=1, help="spread over the jobs, less than these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        _, wrong, alone = sitting(whole, asked.jobs, None, 0)
        targets = [asked.jobs * (kill + 1) // (asked.kills + 1) for kill in range(asked.kills)]
        each = alone / asked.jobs  # with a share of the start-up
        sittings = [sitting(killed, asked.jobs, target, moments.uniform(0, each)) for target in targets]
        sittings.append(sitting(killed, asked.jobs, None, 0))
        wrong += [message for _, found, _ in sittings for message in found]
        rows: list[list[str]] = [["job", *(f"sitting {number + 1}" for number in range(len(sittings))), "equal"]]
        for job in range(asked.jobs):
            found = run_differences(whole / str(job), killed / str(job))
            rows.append([str(job), *(did[job] for did, _, _ in sittings), "no" if found else "yes"])
            wrong += [f"job {job}: {message}" for message in found]
    for message in wrong:
        print(message)
    times = [seconds for _, _, seconds in sittings]
    print(table(rows))
    print(f"\n{' + '.join(f'{seconds:.1f}' for seconds in times)} = {sum(times):.1f} s; undisturbed {alone:.1f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
