"""The checkpoints of a run folder: written whole or not at all, found, and set aside where they are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from metarun.checkpointing import file_format, plain
from metarun.config.schema import Settings
from metarun.errors import UserError, quote_override, relative_to_cwd
from metarun.utils import files

if TYPE_CHECKING:
    from metarun.checkpointing.state import CheckpointState

SUFFIX = ".safetensors"
EARLIER = "step-*.pt"  # what earlier versions wrote
Found = TypeVar("Found")


def save(path: Path, state: CheckpointState) -> None:
    """Write a checkpoint whole: a reader finds the old file or the new one, never a part.

    The folder that it lies in is made, but not that one's own: a run folder that was deleted stays so.

    Raises:
        UserError: the state cannot be saved, and so could not be loaded.
        RunFailure: the disk is full or fails, or the run folder is gone.
    """
    try:
        data = file_format.encoded(*state.parts())
    except ValueError as error:
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
    for path in list_step_checkpoints(folder)[:-keep]:
        path.unlink()


def resolve_checkpoint(place: Path) -> Path:
    """The checkpoint file that `place` means: itself, or a run folder's best, or its newest.

    Raises:
        UserError: there is none.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"checkpoint {place}: no such run folder or file")
    if best_checkpoint_path(place).is_file():
        return best_checkpoint_path(place)
    return latest_intact_checkpoint(place)


def latest_intact_checkpoint(folder: Path) -> Path:
    """The last numbered checkpoint of a run folder that is whole. Raises UserError where there is none."""
    found = list_step_checkpoints(folder)
    if not found and (earlier := sorted((folder / "checkpoints").glob(EARLIER))):
        raise UserError(
            f"{folder}: its checkpoints are of an earlier version of metarun ({earlier[-1].name}), this version reads "
            f"*{SUFFIX}: go on with the version that wrote them, or train again"
        )
    if not found:
        raise UserError(f"{folder}: not a run folder with checkpoints (looked for checkpoints/step-*{SUFFIX} in it)")
    errors = {}
    for path in reversed(found):
        error = integrity_error(path)
        if error is None:
            return path
        errors[path.name] = error
    raise UserError(f"{folder}: none of its checkpoints is whole: {'; '.join(map(' '.join, errors.items()))}")


def quarantine_newer_damaged(folder: Path, intact: Path) -> list[Path]:
    """Rename what is newer than the newest whole checkpoint to NAME.damaged, so that it no longer counts as newest."""
    return [
        path.rename(path.with_name(f"{path.name}.damaged")) for path in list_step_checkpoints(folder) if path > intact
    ]


def recovery_hint(folder: Path) -> str:
    """How to go on with a training run that a failing disk has ended: what is whole, and what to type."""
    if not folder.is_dir():
        return "if it was moved, go on with resume=FOLDER, its new place"
    if not list_step_checkpoints(folder):
        return "the run had no checkpoint yet, start it again"
    try:
        intact = latest_intact_checkpoint(folder)
    except UserError as error:
        return str(error)
    return f"{intact.name} is whole, go on with {quote_override('resume', relative_to_cwd(folder))}"


def quarantine_if_damaged(path: Path) -> str | None:
    """What is wrong with a checkpoint, which is then called NAME.damaged; None where it is whole."""
    if not path.exists():
        return f"{relative_to_cwd(path)} is missing"
    error = integrity_error(path)
    if error is None:
        return None
    return f"{relative_to_cwd(path)} {error}: it is kept as {path.rename(path.with_name(f'{path.name}.damaged')).name}"


def integrity_error(path: Path) -> str | None:
    """What is wrong with the file, or None where its SHA-256 is right; read a piece at a time."""
    return try_read(path, file_format.content_of)[0]


def load(place: Path) -> CheckpointState:
    """Read a checkpoint, as data only: no code in it is run, and it takes no more memory than its file has.

    Raises:
        UserError: the file is missing, damaged, of another version, or holds what no run does.
    """
    from metarun.checkpointing.state import of_parts

    path = resolve_checkpoint(place)
    return taken(path, file_format.read, lambda found: of_parts(*found))


def load_settings(place: Path) -> Settings:
    """The settings of a checkpoint, without torch. Raises UserError as `load`."""
    path = resolve_checkpoint(place)

    def settings(content: Any) -> Settings:
        if not isinstance(content, dict):
            raise ValueError("it holds no settings")
        return plain.from_json(Settings, content.get("settings"), "settings")

    return taken(path, file_format.content_of, settings)


def taken(path: Path, reader: Callable[[Path], Any], convert: Callable[[Any], Found]) -> Found:
    """What is read from a checkpoint, converted; both are told as UserError where they fail."""
    error, found = try_read(path, reader)
    if error:
        raise UserError(f"checkpoint {path}: {error}")
    try:
        return convert(found)
    except ValueError as unfit:
        raise UserError(f"checkpoint {path}: it is not one that this version of metarun writes: {unfit}") from unfit


def try_read(path: Path, reader: Callable[[Path], Found]) -> tuple[str | None, Found | None]:
    """What is wrong with a file that `reader` reads, or None; and what was read."""
    try:
        return None, reader(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})", None
    except file_format.Refused as error:
        return str(error), None
