"""Reads the run folders below given folders: finished runs, unfinished runs, and folders that cannot be read."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any

from metarun.config.groups import CONFIG_GROUPS
from metarun.errors import UserError
from metarun.metrics import METRIC_BY_NAME, Metric
from metarun.utils.run_outputs import METRICS, RESULT, parse_metrics_line, read_result
from metarun.utils.safe_files import LIST_BYTES, read_bytes, read_yaml, require_unlinked

RUN_DIR_MARKERS = (RESULT, METRICS, "checkpoints", ".hydra")  # a folder that has one of them is a run folder
STEP_CHECKPOINT = re.compile(r"step-(\d+)\.(safetensors|pt)")
TESTED_MODES = ("train", "evaluate")
LARGEST = 1e40  # of a number in a result, so that its square is finite as well
OPTIONAL_NUMBER = (float, int, NoneType)
RESULT_TYPES: Mapping[str, tuple[type, ...]] = {  # the entries of result.json that are read
    "settings": (dict,),
    **dict.fromkeys(("dataset", "method", "split", "trained_on", "batch_norm", "checkpoint", "metarun"), (str,)),
    **dict.fromkeys(("shots", "queries", "seed", "tasks", "iterations", "skipped_steps"), (int,)),
    **{"metric": (str,), "mean": OPTIONAL_NUMBER, "ci95": OPTIONAL_NUMBER, "by_step": (list,), "seconds": (float, int)},
    **{"ways": (int, NoneType), "class_split": (str, NoneType)},
}


@dataclass(frozen=True)
class Run:
    """A finished run; the fields of result.json under the same names. None stands for a non-finite number."""

    folder: Path
    command: str
    metrics: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl; empty after an evaluation
    settings: Mapping[str, Any]  # by dotted name, and each group's choice under the group's name
    dataset: str
    method: str
    ways: int | None
    shots: int
    queries: int
    seed: int
    metric: Metric
    mean: float | None  # an accuracy is a fraction
    ci95: float | None  # half the width of the 95 % interval over test tasks
    tasks: int
    by_step: Sequence[float | None]
    untrained: float | None  # mean of the untrained network
    split: str
    trained_on: str  # name of the data set
    class_split: str | None
    batch_norm: str
    iterations: int  # outer steps before the tested checkpoint
    checkpoint: str
    seconds: float
    skipped_steps: int
    metarun: str  # the version


@dataclass(frozen=True)
class SkippedFolder:
    """A run that is unfinished or cannot be read."""

    folder: Path
    reason: str  # how far it has come, or why it cannot be read
    command: str = ""


@dataclass(frozen=True)
class LoadedRuns:
    runs: tuple[Run, ...]
    unfinished: tuple[SkippedFolder, ...]
    unreadable: tuple[SkippedFolder, ...]


class UnreadableRun(ValueError):
    """Why a run folder cannot be read."""


def folders(paths: str | Sequence[str]) -> list[Path]:
    """The run folders at or below `paths`, each once, ordered by name.

    Raises:
        UserError: a path is no folder, or has no run folder at or below it.
    """
    unique: dict[Path, Path] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        top = Path(path).expanduser()
        if not top.is_dir():
            raise UserError(f"runs={path}: no such folder; give the folder of a run or of a sweep")
        below = list(search(top))
        if not below:
            raise UserError(
                f"runs={path}: no run is there: neither it nor a folder below it has "
                f"{', '.join(RUN_DIR_MARKERS[:-1])} or {RUN_DIR_MARKERS[-1]}; give the folder of a run or of a sweep"
            )
        for folder in below:
            unique.setdefault(folder.resolve(), folder)
    return list(unique.values())


def search(top: Path) -> Iterator[Path]:
    """Run folders at or below `top`; not those within a run folder, in hidden folders or behind links."""
    stack = [top]
    while stack:
        folder = stack.pop()
        if any((folder / name).exists() for name in RUN_DIR_MARKERS):
            yield folder
            continue
        try:
            inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise UserError(f"runs={folder}: cannot be read ({error.strerror})") from error
        stack += sorted((path for path in inside if not path.name.startswith(".")), key=natural_order, reverse=True)


def natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key by which job 2 comes before job 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def read(run_folders: Sequence[Path]) -> LoadedRuns:
    """Read run folders; predictions and reports, which test nothing, are left out."""
    runs, unfinished, unreadable = [], [], []
    for folder in run_folders:
        try:
            settings = read_settings(folder)
            if settings.get("mode", "train") not in TESTED_MODES:
                continue
            if os.path.lexists(folder / RESULT):
                runs += finished(folder)
            else:
                unfinished.append(SkippedFolder(folder, describe_progress(folder, settings), read_command(folder)))
        except UnreadableRun as error:
            unreadable.append(SkippedFolder(folder, str(error)))
    return LoadedRuns(tuple(runs), tuple(unfinished), tuple(unreadable))


def finished(folder: Path) -> list[Run]:
    """The result of a finished run, or its results if it evaluated several combinations.

    Raises:
        UnreadableRun: result.json is damaged or lacks what this version writes.
    """
    with explain_unreadable(RESULT):
        content = read_result(folder)
    if not isinstance(content, dict):
        raise UnreadableRun(f"{RESULT} is damaged (no object)")
    results = content.get("results", [content])
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise UnreadableRun(f"{RESULT} is damaged (its results are no list)")
    command, metrics = read_command(folder), read_metrics(folder)
    return [Run(folder=folder, command=command, metrics=metrics, **parse_result(result)) for result in results]


def parse_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Run` that come from result.json. Raises UnreadableRun if one is missing or of another type."""
    result = {"trained_on": result.get("dataset"), **result}
    where = f"{RESULT} is of another version of metarun ({result.get('metarun', 'unknown')})"
    fields = {name: checked_entry(result, name, types, where) for name, types in RESULT_TYPES.items()}
    for value in fields["by_step"]:
        checked_entry({"by_step": value}, "by_step", OPTIONAL_NUMBER, RESULT)
    untrained = result.get("untrained")
    fields["untrained"] = (
        checked_entry(untrained, "mean", OPTIONAL_NUMBER, RESULT) if isinstance(untrained, dict) else None
    )
    if not all(isinstance(fields["settings"].get(group, ""), str) for group in CONFIG_GROUPS):
        raise UnreadableRun(f"{RESULT} is damaged (a choice in its settings is no name)")
    if fields["metric"] not in METRIC_BY_NAME:
        raise UnreadableRun(f"{RESULT} is damaged (its metric is {fields['metric'][:40]!r})")
    return {**fields, "metric": METRIC_BY_NAME[fields["metric"]]}


def checked_entry(content: Mapping[str, Any], name: str, types: tuple[type, ...], where: str) -> Any:
    if name not in content:
        raise UnreadableRun(f"{where}: it has no {name!r}")
    value = content[name]
    if type(value) not in types or (isinstance(value, int | float) and abs(value) > LARGEST):
        raise UnreadableRun(f"{where}: its {name!r} is {str(value)[:40]!r}")
    return value


@contextmanager
def explain_unreadable(name: str) -> Iterator[None]:
    """Turn errors of reading or parsing the file `name` into UnreadableRun."""
    try:
        yield
    except OSError as error:
        raise UnreadableRun(f"{name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UnreadableRun(f"{name} cannot be read (no UTF-8 text)") from error
    except ValueError as error:
        raise UnreadableRun(f"{name} is damaged ({str(error)[:80]})") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in .hydra/config.yaml, by dotted name; empty without the file. Raises UnreadableRun if damaged."""
    flat: dict[str, Any] = {}
    for name, value in read_hydra_file(folder, "config.yaml", dict).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items() if key != "name"}
            if "name" in value:
                flat[str(name)] = value["name"]
        else:
            flat[str(name)] = value
    return flat


def read_command(folder: Path) -> str:
    """The command of the run, quoted for a shell."""
    return shlex.join(["metarun", *map(str, read_hydra_file(folder, "overrides.yaml", list))])


def read_hydra_file(folder: Path, name: str, content_type: type) -> Any:
    path = folder / ".hydra" / name
    if not os.path.lexists(path):
        return content_type()
    with explain_unreadable(f".hydra/{name}"):
        require_unlinked(folder, [".hydra"])
        content = read_yaml(path, links=False)
    if not isinstance(content, content_type):
        raise UnreadableRun(f".hydra/{name} is damaged (no {content_type.__name__})")
    return content


def describe_progress(folder: Path, settings: Mapping[str, Any]) -> str:
    """How far an unfinished run has come."""
    if settings.get("mode") == "evaluate":
        return "the evaluation is not finished"
    matches = [STEP_CHECKPOINT.fullmatch(path.name) for path in (folder / "checkpoints").glob("step-*")]
    saved = max((int(match[1]) for match in matches if match), default=None)
    steps = [line["step"] for line in read_metrics(folder)]
    if not steps and saved is None:
        return "has not begun to train, or failed before its first step was recorded"
    step = max(steps[-1] if steps else 0, saved or 0)
    total = f" of {settings['iterations']}" if isinstance(settings.get("iterations"), int) else ""
    kept = "no checkpoint yet" if saved is None else f"saved at step {saved}"
    written = max(path.stat().st_mtime for path in (folder, folder / METRICS, folder / "checkpoints") if path.exists())
    return f"at step {step}{total}, {kept}, last written {datetime.fromtimestamp(min(written, 2**37)):%Y-%m-%d %H:%M}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The intact lines of metrics.jsonl; empty without the file. Raises UnreadableRun if it cannot be read."""
    path = folder / METRICS
    if not os.path.lexists(path):
        return []
    with explain_unreadable(METRICS):
        lines = read_bytes(path, LIST_BYTES, links=False).splitlines(keepends=True)
    return [entry for line in lines if (entry := parse_metrics_line(line))]
