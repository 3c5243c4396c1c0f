"""Damage what a killed run left, go on with it, and count what comes of it: never a wrong end.

python -m scripts.survive_damage [--times 100]

A run of a second keeps several checkpoints. So often, for each kind of damage, its folder is copied as a kill would
have left it, the newest checkpoint (or best.safetensors, or the last line of metrics.jsonl) is cut short or has one bit
of one byte turned over, and the run goes on with resume=auto. It may end as the undisturbed run did, to the bit, or be
refused in a clear line; anything else is wrong, and the exit status 1.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from metarun.checkpointing import store
from metarun.cli import app, settings
from metarun.errors import UserError
from metarun.runner import run
from metarun.utils.run_outputs import RESULT
from scripts.survival import SMALL, run_differences, table

STEPS = 60
WORDS = [*SMALL, f"iterations={STEPS}", "eval.every=30", "save.every=20", "save.keep=4"]
WORDS += ["eval.tasks=10", "eval.validation_tasks=10", "resume=auto"]
OUTCOMES = ("newest used", "an earlier one used", "refused", "wrong")


def cut(path: Path, moments: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: moments.randrange(len(content))])


def flip(path: Path, moments: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    path.write_bytes(content)


def cut_last_line(folder: Path, moments: random.Random) -> None:
    path = folder / "metrics.jsonl"
    content = path.read_bytes()
    begins = content.rindex(b"\n", 0, -1) + 1
    path.write_bytes(content[: moments.randrange(begins + 1, len(content))])


def cut_line_before_its_save(folder: Path, moments: random.Random) -> None:
    """As a kill leaves it: the line is of a step that no checkpoint has reached."""
    store.list_step_checkpoints(folder)[-1].unlink()
    cut_last_line(folder, moments)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "newest checkpoint cut short": lambda folder, moments: cut(store.latest_intact_checkpoint(folder), moments),
    "a bit of the newest checkpoint turned over": lambda folder, moments: flip(
        store.latest_intact_checkpoint(folder), moments
    ),
    "best.safetensors cut short": lambda folder, moments: cut(store.best_checkpoint_path(folder), moments),
    "a bit of best.safetensors turned over": lambda folder, moments: flip(store.best_checkpoint_path(folder), moments),
    "metrics.jsonl cut in its last line, which is newer than any checkpoint": cut_line_before_its_save,
    "metrics.jsonl cut in its last line, which the newest checkpoint is behind": cut_last_line,
}


def composed() -> settings.Settings:
    with initialize_config_dir(str(app.config_folder()), version_base="1.3"):
        return settings.build(compose("config", WORDS))


def outcome(damage: Callable[[Path, random.Random], None], whole: Path, moments: random.Random) -> tuple[str, str]:
    """Damage a copy of the run folder and go on with it: one of `OUTCOMES`, and what there is to say of it."""
    with tempfile.TemporaryDirectory(dir=whole.parent) as place:
        folder = Path(place) / "run"
        shutil.copytree(whole, folder)
        (folder / RESULT).unlink()
        damage(folder, moments)
        newest = store.list_step_checkpoints(folder)[-1]
        try:
            run(composed(), folder)
        except UserError as error:
            return "refused", str(error).replace(place, "")
        except Exception as error:
            return "wrong", f"{type(error).__name__}: {error}".replace(place, "")
        if found := run_differences(whole, folder):
            return "wrong", found[0]
        aside = newest.with_name(f"{newest.name}.damaged").exists()
        return ("an earlier one used" if aside else "newest used"), ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="of each kind of damage")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    asked = parser.parse_args()
    logging.getLogger("metarun").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows: list[list[object]] = [["damage", "times", *OUTCOMES, "seconds"]]
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        run(composed(), whole)
        for name, damage in DAMAGES.items():
            moments, began = random.Random(f"{asked.seed} {name}"), time.perf_counter()
            found = [outcome(damage, whole, moments) for _ in range(asked.times)]
            counts = Counter(kind for kind, _ in found)
            rows.append([name, asked.times, *(counts[kind] for kind in OUTCOMES), f"{time.perf_counter() - began:.0f}"])
            wrong += counts["wrong"]
            for (kind, said), times in Counter(entry for entry in found if entry[1]).most_common(5):
                print(f"{name}: {kind}, {times} times: {said[:200]}", flush=True)
    print("\n" + table(rows))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
