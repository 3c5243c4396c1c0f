"""Read the run folders below given folders: finished runs, unfinished runs, and folders that cannot be read."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from metarun.config.groups import CONFIG_GROUPS
from metarun.errors import UserError
from metarun.metrics import METRIC_BY_NAME
from metarun.utils.run_outputs import METRICS, RESULT, parse_metrics_line, read_result
from metarun.utils.safe_files import LIST_BYTES, read_bytes, read_yaml, require_unlinked

RUN_DIR_MARKERS = (RESULT, METRICS, "checkpoints", ".hydra")  # of a run folder: one of them is in it
MARKED = re.compile(r"step-(\d+)\.(safetensors|pt)")
TESTED = ("train", "evaluate")  # modes that end with a test
LARGEST = 1e40  # of a number of a result: its square is one as well


@dataclass(frozen=True)
class Run:
    """A finished run; metrics as they are in result.json, accuracy as a fraction, None where not finite."""

    folder: Path
    settings: Mapping[str, Any]  # by dotted name, and each group's choice by the group's
    command: str  # what was typed
    dataset: str
    method: str
    ways: int | None
    shots: int
    queries: int
    seed: int
    metric: str  # a key of metarun.metrics.METRIC_BY_NAME
    mean: float | None
    ci95: float | None  # half of the interval over test tasks
    tasks: int
    by_step: Sequence[float | None]
    untrained: float | None
    split: str  # "test", or what was evaluated instead
    trained_on: str  # the data set
    class_split: str | None
    batch_norm: str
    step: int  # of the checkpoint that was tested
    checkpoint: str
    seconds: float
    skipped: int
    version: str
    metrics: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl; none after an evaluation

    @property
    def larger_is_better(self) -> bool:
        return METRIC_BY_NAME[self.metric].higher_is_better


@dataclass(frozen=True)
class Unfinished:
    folder: Path
    command: str
    state: str  # how far it has come


@dataclass(frozen=True)
class Unreadable:
    folder: Path
    reason: str


@dataclass(frozen=True)
class LoadedRuns:
    runs: tuple[Run, ...]
    unfinished: tuple[Unfinished, ...]
    unreadable: tuple[Unreadable, ...]


class UnreadableRun(ValueError):
    """A run folder cannot be read; the message says why."""


def folders(places: str | Sequence[str]) -> list[Path]:
    """The run folders at or below `places`, without repeats, in natural order of their names.

    Raises:
        UserError: a place that is none and has none below it.
    """
    found: dict[Path, Path] = {}
    for place in [places] if isinstance(places, str) else places:
        top = Path(place).expanduser()
        if not top.is_dir():
            raise UserError(f"runs={place}: no such folder; give the folder of a run or of a sweep")
        below = list(search(top))
        if not below:
            raise UserError(
                f"runs={place}: no run is there: neither it nor a folder below it has "
                f"{', '.join(RUN_DIR_MARKERS[:-1])} "
                f"or {RUN_DIR_MARKERS[-1]}; give the folder of a run or of a sweep"
            )
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def search(top: Path) -> Iterator[Path]:
    """Iterate over run folders at or below `top`, skipping hidden folders, links and folders within run folders."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        if any((folder / sign).exists() for sign in RUN_DIR_MARKERS):
            yield folder
            continue
        try:
            inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise UserError(f"runs={folder}: cannot be read ({error.strerror})") from error
        waiting += sorted((path for path in inside if not path.name.startswith(".")), key=natural, reverse=True)


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key that puts job 2 before job 10."""
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", path.name)
    ]


def read(run_folders: Sequence[Path]) -> LoadedRuns:
    """Read run folders; predictions and reports are skipped, since they have no test result."""
    runs, unfinished, unreadable = [], [], []
    for folder in run_folders:
        try:
            settings = typed_settings(folder)
            if settings.get("mode", "train") not in TESTED:
                continue
            if os.path.lexists(folder / RESULT):
                runs += finished(folder)
            else:
                unfinished.append(Unfinished(folder, command(folder), progress_description(folder, settings)))
        except UnreadableRun as fault:
            unreadable.append(Unreadable(folder, str(fault)))
    return LoadedRuns(tuple(runs), tuple(unfinished), tuple(unreadable))


# --- a finished run ----------------------------------------------------------------------------------------


def finished(folder: Path) -> list[Run]:
    """The result of a finished run, or all results of an evaluation.

    Raises:
        UnreadableRun: result.json is damaged or lacks what this version writes.
    """
    with faults(RESULT):
        content = read_result(folder)
    if not isinstance(content, dict):
        raise UnreadableRun(f"{RESULT} is damaged (no object)")
    results = content.get("results", [content])
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise UnreadableRun(f"{RESULT} is damaged (its results are no list)")
    typed, lines = command(folder), metrics(folder)
    return [run_of(folder, result, typed, lines) for result in results]


def run_of(folder: Path, result: Mapping[str, Any], typed: str, lines: Sequence[Mapping[str, Any]]) -> Run:
    take = typed_getter(result, f"{RESULT} is of another version of metarun ({result.get('metarun', 'unknown')})")
    settings = take("settings", dict)
    if not all(isinstance(settings.get(group, ""), str) for group in CONFIG_GROUPS):
        raise UnreadableRun(f"{RESULT} is damaged (a choice in its settings is no name)")
    untrained = result.get("untrained")
    run = Run(
        folder=folder,
        settings=settings,
        command=typed,
        dataset=take("dataset", str),
        method=take("method", str),
        ways=take("ways", int, type(None)),
        shots=take("shots", int),
        queries=take("queries", int),
        seed=take("seed", int),
        metric=take("metric", str),
        mean=take("mean", float, int, type(None)),
        ci95=take("ci95", float, int, type(None)),
        tasks=take("tasks", int),
        by_step=[
            typed_getter({"by_step": value}, RESULT)("by_step", float, int, type(None))
            for value in take("by_step", list)
        ],
        untrained=typed_getter(untrained, RESULT)("mean", float, int, type(None))
        if isinstance(untrained, dict)
        else None,
        split=take("split", str),
        trained_on=take("trained_on", str) if "trained_on" in result else take("dataset", str),
        class_split=take("class_split", str, type(None)),
        batch_norm=take("batch_norm", str),
        step=take("iterations", int),
        checkpoint=take("checkpoint", str),
        seconds=take("seconds", float, int),
        skipped=take("skipped_steps", int),
        version=take("metarun", str),
        metrics=lines,
    )
    if run.metric not in METRIC_BY_NAME:
        raise UnreadableRun(f"{RESULT} is damaged (its metric is {run.metric[:40]!r})")
    return run


def typed_getter(content: Mapping[str, Any], what: str) -> Callable[..., Any]:
    """A function that takes an entry out of `content` and raises UnreadableRun if it is missing or of another type."""

    def take(name: str, *kinds: type) -> Any:
        if name not in content:
            raise UnreadableRun(f"{what}: it has no {name!r}")
        value = content[name]
        if type(value) not in kinds or (isinstance(value, int | float) and abs(value) > LARGEST):
            raise UnreadableRun(f"{what}: its {name!r} is {str(value)[:40]!r}")
        return value

    return take


@contextmanager
def faults(name: str) -> Iterator[None]:
    """Raise UnreadableRun, naming the file, in place of any error of reading or parsing it."""
    try:
        yield
    except OSError as error:
        raise UnreadableRun(f"{name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UnreadableRun(f"{name} cannot be read (no UTF-8 text)") from error
    except ValueError as error:
        raise UnreadableRun(f"{name} is damaged ({str(error)[:80]})") from error


# --- what was typed, and how far it came -------------------------------------------------------------------


def typed_settings(folder: Path) -> dict[str, Any]:
    """Settings in .hydra/config.yaml by dotted name; empty without that file. Raises UnreadableRun if it is damaged."""
    content = hydra_file(folder, "config.yaml", dict)
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items() if key != "name"}
            if "name" in value:
                flat[str(name)] = value["name"]
        else:
            flat[str(name)] = value
    return flat


def command(folder: Path) -> str:
    """The command line of the run, quoted for a shell."""
    return shlex.join(["metarun", *map(str, hydra_file(folder, "overrides.yaml", list))])


def hydra_file(folder: Path, name: str, kind: type) -> Any:
    path = folder / ".hydra" / name
    if not os.path.lexists(path):
        return kind()
    with faults(f".hydra/{name}"):
        require_unlinked(folder, [".hydra"])
        content = read_yaml(path, links=False)
    if not isinstance(content, kind):
        raise UnreadableRun(f".hydra/{name} is damaged (no {kind.__name__})")
    return content


def progress_description(folder: Path, settings: Mapping[str, Any]) -> str:
    """One phrase on the progress of an unfinished run."""
    if settings.get("mode") == "evaluate":
        return "the evaluation is not finished"
    marks = [MARKED.fullmatch(path.name) for path in (folder / "checkpoints").glob("step-*")]
    saved = max((int(mark[1]) for mark in marks if mark), default=None)
    steps = [line["step"] for line in metrics(folder)]
    if not steps and saved is None:
        return "has not begun to train, or failed before its first step was recorded"
    at = max(steps[-1] if steps else 0, saved or 0)
    of = f" of {settings['iterations']}" if isinstance(settings.get("iterations"), int) else ""
    kept = "no checkpoint yet" if saved is None else f"saved at step {saved}"
    written = max(path.stat().st_mtime for path in (folder, folder / METRICS, folder / "checkpoints") if path.exists())
    return f"at step {at}{of}, {kept}, last written {datetime.fromtimestamp(min(written, 2**37)):%Y-%m-%d %H:%M}"


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that can be read. Raises UnreadableRun if the file cannot."""
    path = folder / METRICS
    if not os.path.lexists(path):
        return []
    with faults(METRICS):
        lines = read_bytes(path, LIST_BYTES, links=False).splitlines(keepends=True)
    return [entry for line in lines if (entry := parse_metrics_line(line))]
