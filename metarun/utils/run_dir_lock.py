"""Exclusive use of a run folder: refuses folders of other runs, and locks the folder while a run writes to it.

Nothing is written to a run folder, neither Hydra's records nor the log, until all checks of the command have passed.
A refused command leaves the folder unchanged.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metarun.errors import RunFailure, UserError, quote_override, relative_to_cwd
from metarun.utils.files import remove_partial_files
from metarun.utils.run_outputs import METRICS, PREDICTIONS, RESULT, RESULTS, read_result
from metarun.utils.safe_files import UnsafeFile, require_unlinked

AUTO = "auto"  # value of `resume`: continue the training run in this command's run folder, if there is one
LOCK = ".lock"
SWEEP = "multirun.yaml"  # written by Hydra to the folder of a sweep
RECORDS = (".hydra", "metarun.log", "tensorboard", METRICS, "tasks.csv", "runs.csv")
RECORDS += ("report.md", "report.html", "report.csv", "predictions.png")
LOCK_TIMEOUT = 10.0  # seconds resume=auto waits for an orphaned process to save its last checkpoint


def require_free(folder: Path, mode: str, resume: str | None, sweeping: bool = False) -> None:
    """Check that the command overwrites no file of another run or program in `folder`.

    What a start that was interrupted before its first recorded step has left does not count as a run.

    Args:
        folder: the run folder, which need not exist.
        mode: `mode=` of the command.
        resume: `resume=` of the command.
        sweeping: whether the folder belongs to a job of a sweep.

    Raises:
        UserError: the folder holds another run, or files that a run would overwrite.
    """
    path = relative_to_cwd(folder)
    require_own_files(folder)
    if resume not in (None, AUTO):
        if folder.resolve() != Path(str(resume)).expanduser().resolve():
            raise UserError(f"resume={resume}: goes on in its own folder, not in {path}; leave hydra.run.dir out")
        return
    key = "hydra.sweep.dir" if sweeping else "hydra.run.dir"
    present = describe_run(folder)
    if resume == AUTO:
        if present not in (None, "a training run"):
            raise UserError(f"{path}: holds {present}, not a training run to go on with; give {key}=ANOTHER")
        return
    if present:
        advice = "type the sweep again with resume=auto" if sweeping else quote_override("resume", path)
        advice = advice if sweeping else f"go on with it by resume=auto or {advice}"
        advice = advice if mode == "train" and present == "a training run" else f"mode={mode} needs a folder of its own"
        raise UserError(f"{path}: holds {present} already, which is left as it is; {advice}, or give {key}=ANOTHER")
    if not (folder / LOCK).exists() and not (folder / SWEEP).exists():
        for name in RECORDS:
            if os.path.lexists(folder / name):
                raise UserError(
                    f"{path / name}: belongs to another program and would be overwritten; give {key}=ANOTHER"
                )


def require_own_files(folder: Path) -> None:
    """Raise UserError if a file or folder that a run writes to is a link or not a regular file."""
    try:
        require_unlinked(folder, (LOCK, RESULT, "checkpoints", *RECORDS))
    except UnsafeFile as error:
        raise UserError(
            f"{relative_to_cwd(Path(error.filename))}: {error.strerror}; a run folder's files are its own, take it away"
        ) from error


def describe_run(folder: Path) -> str | None:
    """Which run the folder holds, such as "a training run" or "a prediction". None if it holds no run."""
    checkpoints, metrics = folder / "checkpoints", folder / METRICS
    saved = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    if not all(name.startswith(("start.", ".")) for name in saved) or (metrics.is_file() and metrics.stat().st_size):
        return "a training run"
    if os.path.lexists(folder / PREDICTIONS):
        return "a prediction"
    if os.path.lexists(folder / RESULTS):
        return "an evaluation"
    if not os.path.lexists(folder / RESULT):
        return None
    try:
        return "an evaluation" if read_result(folder)["mode"] == "evaluate" else "a training run"
    except (OSError, ValueError, LookupError, TypeError):  # damaged: reported by those who read it
        return "a training run"


def require_free_sweep(folder: Path, resume: str | None) -> None:
    """Raise UserError if the folder of a sweep holds a run, or jobs that `resume` does not continue."""
    if folder.is_dir() and (present := describe_run(folder)):
        raise UserError(f"{relative_to_cwd(folder)}: holds {present} already; give hydra.sweep.dir=ANOTHER")
    if resume == AUTO or not folder.is_dir():
        return
    jobs = [path for path in folder.iterdir() if path.name.isdecimal() or (folder / SWEEP).exists()]
    for job in sorted(jobs):
        if job.is_dir() and (present := describe_run(job)):
            raise UserError(
                f"{relative_to_cwd(folder)}: holds a sweep already ({present} in {job.name}), "
                "which is left as it is; go on with it by resume=auto, or give hydra.sweep.dir=ANOTHER"
            )


@contextmanager
def exclusive_run_dir(folder: Path, record: Callable[[], object], timeout: float = 0) -> Iterator[Callable[[], None]]:
    """Lock a run folder against every other process.

    Args:
        folder: an existing run folder.
        record: writes the command's overrides and config to the folder.
        timeout: seconds to wait for the process that holds the lock.

    Yields:
        `begin`, to be called once all checks have passed. It removes partial files and calls `record`. If a UserError
        is raised before, the folder is left unchanged; any other exception still writes the record.

    Raises:
        UserError: another process holds the lock.
    """
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            begun = True
            remove_partial_files(folder)
            record()

    descriptor, new = acquire_lock(folder, timeout)
    try:
        yield begin
    except UserError:
        if new and not begun:
            (folder / LOCK).unlink()
        raise
    except BaseException:
        with suppress(OSError, RunFailure):  # the exception that ended the run is the one to report
            begin()
        raise
    finally:
        os.close(descriptor)


def acquire_lock(folder: Path, timeout: float) -> tuple[int, bool]:
    """Lock the lock file of a run folder, created if missing; the system releases it when the process ends.

    Returns:
        The file's descriptor, which holds the lock until it is closed, and whether the file was created.

    Raises:
        UserError: another process still holds the lock after `timeout` seconds, or the file is a link.
    """
    path, end = folder / LOCK, time.monotonic() + timeout
    require_own_files(folder)
    while True:
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have deleted the file between open and flock.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, new
        except BlockingIOError as error:
            if time.monotonic() >= end:
                os.close(descriptor)
                raise UserError(
                    f"{relative_to_cwd(folder)}: another process is writing to this run folder; "
                    "wait for it, stop it or give another"
                ) from error
            time.sleep(0.1)
        os.close(descriptor)
