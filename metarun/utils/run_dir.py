"""A run folder belongs to one run: who may begin in it, and what keeps everybody else from changing it.

Nothing is written into it, be it a record of what was typed or a line of its log, before the run has met all that
it was given: a command that is refused leaves the folder as it was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metarun.errors import RunFailure, UserError, quote_override, relative_to_cwd
from metarun.utils.files import remove_partial_files
from metarun.utils.run_files import METRICS, PREDICTIONS, RESULT, RESULTS, read_result
from metarun.utils.safe_files import UnsafeFile, require_unlinked

AUTO = "auto"  # of `resume`: continue what is in the run's own folder
LOCK = ".lock"
SWEEP = "multirun.yaml"  # Hydra's record of a sweep
RECORDS = (".hydra", "metarun.log", "tensorboard", METRICS, "tasks.csv", "runs.csv")
RECORDS += ("report.md", "report.html", "report.csv", "predictions.png")
PATIENCE = 10.0  # seconds that resume=auto waits for a process that saves its last checkpoint, its parent being gone


def require_free(folder: Path, mode: str, resume: str | None, sweeping: bool = False) -> None:
    """Refuse a folder in which the command would write over another run's files, or over anybody's.

    What an interrupted start has left, before its first step was recorded, is no run.

    Raises:
        UserError: names the folder, what it holds and where to go.
    """
    place = relative_to_cwd(folder)
    require_own_files(folder)
    if resume not in (None, AUTO):
        if folder.resolve() != Path(str(resume)).expanduser().resolve():
            raise UserError(f"resume={resume}: goes on in its own folder, not in {place}; leave hydra.run.dir out")
        return
    key = "hydra.sweep.dir" if sweeping else "hydra.run.dir"
    found = content(folder)
    if resume == AUTO:
        if found not in (None, "a training run"):
            raise UserError(f"{place}: holds {found}, not a training run to go on with; give {key}=ANOTHER")
        return
    if found:
        again = "type the sweep again with resume=auto" if sweeping else quote_override("resume", place)
        again = again if sweeping else f"go on with it by resume=auto or {again}"
        again = again if mode == "train" and found == "a training run" else f"mode={mode} needs a folder of its own"
        raise UserError(f"{place}: holds {found} already, which is left as it is; {again}, or give {key}=ANOTHER")
    if not (folder / LOCK).exists() and not (folder / SWEEP).exists():
        for name in RECORDS:
            if os.path.lexists(folder / name):
                raise UserError(f"{place / name}: is of another program, and would be written over; give {key}=ANOTHER")


def require_own_files(folder: Path) -> None:
    """Raises UserError where a file or folder that a run writes to is a link or no regular file."""
    try:
        require_unlinked(folder, (LOCK, RESULT, "checkpoints", *RECORDS))
    except UnsafeFile as error:
        raise UserError(
            f"{relative_to_cwd(Path(error.filename))}: {error.strerror}; a run folder's files are its own, take it away"
        ) from error


def content(folder: Path) -> str | None:
    """What is in a folder that holds a run, in words; None where it holds none."""
    checkpoints, metrics = folder / "checkpoints", folder / METRICS
    kept = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    recorded = metrics.is_file() and metrics.stat().st_size > 0
    if recorded or not all(name.startswith(("start.", ".")) for name in kept):
        return "a training run"
    if os.path.lexists(folder / PREDICTIONS):
        return "a prediction"
    if os.path.lexists(folder / RESULTS):
        return "an evaluation"
    if os.path.lexists(folder / RESULT):
        return "an evaluation" if mode(folder) == "evaluate" else "a training run"
    return None


def mode(folder: Path) -> object:
    """That of a finished run; None where its result is damaged, which is told when it is read."""
    try:
        return read_result(folder)["mode"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def require_free_sweep(folder: Path, resume: str | None) -> None:
    """The same for a sweep's folder, before any of its jobs begins. A job looks at its own folder once more."""
    if folder.is_dir() and (held := content(folder)):
        raise UserError(f"{relative_to_cwd(folder)}: holds {held} already; give hydra.sweep.dir=ANOTHER")
    if resume == AUTO or not folder.is_dir():
        return
    jobs = [place for place in folder.iterdir() if place.name.isdecimal() or (folder / SWEEP).exists()]
    for job in sorted(jobs):
        if job.is_dir() and (held := content(job)):
            raise UserError(
                f"{relative_to_cwd(folder)}: holds a sweep already ({held} in {job.name}), "
                "which is left as it is; go on with "
                "it by resume=auto, or give hydra.sweep.dir=ANOTHER"
            )


@contextmanager
def own(folder: Path, record: Callable[[], object], patience: float = 0) -> Iterator[Callable[[], None]]:
    """Hold a run folder against every other process, for as long as the block lasts.

    Args:
        record: writes down what was typed.
        patience: seconds to wait for a process that is about to end.

    Yields:
        What is to be called when the command can no longer be refused. A UserError before leaves no trace of it.

    Raises:
        UserError: another process holds the folder.
    """
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            begun = True
            remove_partial_files(folder)
            record()

    with locked(folder, patience) as new:
        try:
            yield begin
        except UserError:
            if new and not begun:
                (folder / LOCK).unlink()
            raise
        except BaseException:
            with suppress(OSError, RunFailure):  # what ended the run is the one to tell
                begin()
            raise


@contextmanager
def locked(folder: Path, patience: float) -> Iterator[bool]:
    """Hold the folder's lock, which dies with its process. Yields whether there was none. Raises as `own` does."""
    path, end = folder / LOCK, time.monotonic() + patience
    while True:
        new = not path.exists()
        descriptor = open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):  # else taken away meanwhile
                break
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"{relative_to_cwd(folder)}: another process is writing to this run folder; "
                    "wait for it, stop it or give "
                    "another"
                ) from error
            time.sleep(0.1)
        os.close(descriptor)
    try:
        yield new
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(
            f"{relative_to_cwd(path)}: is a link; a run folder's files are its own, take it away"
        ) from error
