"""Every mistake of tests/helpers/mistakes_table.py as a real command: what it is answered, and how fast.

python -m scripts.bad_input [--only WORD] [--jobs N]

A line each: exit status, lines on stderr, seconds, what was typed, the message. Exit status 1 where one is not told
in one line with status 2 and its words, or where settings alone take LIMIT seconds or leave something behind.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.helpers.mistakes_table import CONFIG, WORK, Mistake

ROOT = Path(__file__).resolve().parent.parent

LIMIT = 2.0  # seconds, of what is answered without torch
PREPARE = "import sys; from tests.helpers.mistakes_files import prepare; prepare(sys.argv[1])"
AT_MOST = 120  # seconds; a command that goes on has not been refused


class Answer(NamedTuple):
    mistake: Mistake
    status: int | None  # None: it was stopped
    lines: list[str]  # of stderr
    seconds: float
    left: list[str]  # what it made in its folder


def ask(mistake: Mistake) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("METARUN_")}
        environment["PYTHONPATH"] = str(ROOT)
        if mistake.prepared:
            line = [sys.executable, "-c", PREPARE, mistake.prepared]
            subprocess.run(line, cwd=folder, env=environment, check=True)
        before = set(Path(folder).rglob("*"))
        line = [sys.executable, "-m", "metarun", *shlex.split(mistake.typed)]
        began = time.perf_counter()
        try:
            done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=AT_MOST)
            status, lines = done.returncode, done.stderr.splitlines()
        except subprocess.TimeoutExpired:
            status, lines = None, []
        seconds = time.perf_counter() - began
        left = sorted(str(path.relative_to(folder)) for path in set(Path(folder).rglob("*")) - before)
    return Answer(mistake, status, lines, seconds, left)


def faults(answer: Answer, config: bool) -> list[str]:
    """Which parts of the rule an answer breaks."""
    told = "\n".join(answer.lines)
    found = []
    if answer.status != 2:
        found.append("was not refused" if answer.status is None else f"status {answer.status}")
    if len(answer.lines) != 1:
        found.append(f"{len(answer.lines)} lines")
    found += [f"no word {word!r}" for word in answer.mistake.words if word not in told]
    if config and answer.seconds >= LIMIT:
        found.append(f"{answer.seconds:.1f} s")
    if config and answer.left:
        found.append(f"left {answer.left[0]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows with this word in what is typed or told")
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time")
    chosen = parser.parse_args()
    rows = [m for m in [*CONFIG, *WORK] if chosen.only in f"{m.typed} {' '.join(m.words)} {m.prepared}"]
    settings = set(CONFIG)
    broken, slowest = [], None
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for answer in pool.map(ask, rows):
            mistake = answer.mistake
            print(
                f"{answer.status}  {len(answer.lines)} lines  {answer.seconds:4.2f} s  metarun {mistake.typed}  ->  "
                f"{(answer.lines or ['nothing'])[-1]}",
                flush=True,
            )
            broken += [(mistake.typed, fault) for fault in faults(answer, mistake in settings)]
            if mistake in settings and (slowest is None or answer.seconds > slowest.seconds):
                slowest = answer
    print(f"\n{len(rows)} mistakes, {len(settings & set(rows))} of them in settings alone")
    if slowest is not None:
        print(f"the slowest of these: {slowest.seconds:.2f} s, metarun {slowest.mistake.typed}")
    for typed, fault in broken:
        print(f"BROKEN: metarun {typed}: {fault}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
