"""The checkpoints of a run folder: atomic writes, look-up, and renaming of damaged ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from metarun.checkpointing import file_format, typed_json
from metarun.config.schema import Settings
from metarun.errors import UserError, quote_override, relative_to_cwd
from metarun.utils import files

if TYPE_CHECKING:
    from metarun.checkpointing.state import CheckpointState

SUFFIX = ".safetensors"


def save(path: Path, state: CheckpointState) -> None:
    """Write a checkpoint atomically: a reader sees the old file or the new one, never a part.

    Creates the folder `checkpoints`, but never the run folder: one that was deleted stays deleted.

    Raises:
        UserError: the state is not valid, and could not be loaded again.
        RunFailure: the disk is full or fails, or the run folder is gone.
    """
    try:
        data = file_format.encode(*state.parts())
    except (ValueError, file_format.FormatError) as error:
        raise UserError(f"checkpoint {relative_to_cwd(path)}: cannot be saved: {error}") from error
    with files.translate_os_errors(path.parent):
        if not path.parent.is_dir():
            path.parent.mkdir()
            files.sync_folder(path.parent.parent)
    files.atomic_write(path, data)


def step_checkpoint_path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}{SUFFIX}"


def list_step_checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob(f"step-*{SUFFIX}"))


def best_checkpoint_path(folder: Path) -> Path:
    return folder / "checkpoints" / f"best{SUFFIX}"


def prune(folder: Path, keep: int) -> None:
    """Delete all numbered checkpoints but the last `keep`."""
    for path in list_step_checkpoints(folder)[:-keep]:
        path.unlink()


def resolve_checkpoint(place: Path) -> Path:
    """The checkpoint file that `place` means: itself, or a run folder's best, or else its newest intact one.

    Raises:
        UserError: there is none.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"checkpoint {place}: no such run folder or file")
    best = best_checkpoint_path(place)
    return best if best.is_file() else latest_intact_checkpoint(place)


def latest_intact_checkpoint(folder: Path) -> Path:
    """The newest numbered checkpoint of a run folder that is intact. Raises UserError if there is none."""
    errors = []
    for path in reversed(list_step_checkpoints(folder)):
        error = integrity_error(path)
        if error is None:
            return path
        errors.append(f"{path.name} {error}")
    if errors:
        raise UserError(f"{folder}: none of its checkpoints is whole: {'; '.join(errors)}")
    if earlier := sorted((folder / "checkpoints").glob("step-*.pt")):
        raise UserError(
            f"{folder}: its checkpoints are of an earlier version of metarun ({earlier[-1].name}), this version reads "
            f"*{SUFFIX}: go on with the version that wrote them, or train again"
        )
    raise UserError(f"{folder}: not a run folder with checkpoints (looked for checkpoints/step-*{SUFFIX} in it)")


def quarantine_newer_damaged(folder: Path, intact: Path) -> list[Path]:
    """Rename every numbered checkpoint newer than `intact` to NAME.damaged. Returns the new paths."""
    return [quarantine(path) for path in list_step_checkpoints(folder) if path > intact]


def quarantine_if_damaged(path: Path) -> str | None:
    """Rename a damaged checkpoint to NAME.damaged. Returns what is wrong with it; None if it is intact."""
    if not path.exists():
        return f"{relative_to_cwd(path)} is missing"
    error = integrity_error(path)
    return error and f"{relative_to_cwd(path)} {error}: it is kept as {quarantine(path).name}"


def quarantine(path: Path) -> Path:
    return path.rename(path.with_name(f"{path.name}.damaged"))


def recovery_hint(folder: Path) -> str:
    """How to resume a training run that a failing disk has ended: which checkpoint is intact, and what to type."""
    if not folder.is_dir():
        return "if it was moved, go on with resume=FOLDER, its new place"
    if not list_step_checkpoints(folder):
        return "the run had no checkpoint yet, start it again"
    try:
        intact = latest_intact_checkpoint(folder)
    except UserError as error:
        return str(error)
    return f"{intact.name} is whole, go on with {quote_override('resume', relative_to_cwd(folder))}"


def integrity_error(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None if its SHA-256 is right. Reads the file in chunks."""
    try:
        file_format.read(path, with_tensors=False)
    except file_format.FormatError as error:
        return str(error)
    return None


def load(place: Path) -> CheckpointState:
    """Read a checkpoint file, or that of a run folder (`resolve_checkpoint`).

    The file is data only: nothing in it is executed, and it takes no more memory than the file has bytes.

    Raises:
        UserError: the file is missing, damaged, of another version, or not a valid state of a run.
    """
    from metarun.checkpointing.state import from_parts

    path = resolve_checkpoint(place)
    with translate_errors(path):
        return from_parts(*file_format.read(path))


def load_settings(place: Path) -> Settings:
    """Read the settings of a checkpoint, without importing torch. Raises UserError as `load`."""
    path = resolve_checkpoint(place)
    with translate_errors(path):
        content = typed_json.require_type(dict, file_format.read(path, with_tensors=False)[0], "content")
        return typed_json.from_json(Settings, content.get("settings"), "settings")


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Raise UserError, which names the file, instead of FormatError and ValueError."""
    try:
        yield
    except file_format.FormatError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    except ValueError as error:
        raise UserError(f"checkpoint {path}: it is not one that this version of metarun writes: {error}") from error
