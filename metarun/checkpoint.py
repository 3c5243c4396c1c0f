"""Checkpoints: plain tensors, numbers and strings in one file, written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun import untrusted, whole_files
from metarun.errors import UserError, nearby, pasteable

FORMAT = 2
BEST = "best.pt"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole: a reader finds the old file or the new one, never a part.

    The folder that it lies in is made, but not that one's own: a run folder that was deleted stays so.

    Raises:
        RunFailure: the disk is full or fails, or the run folder is gone.
    """
    data = io.BytesIO()
    torch.save({"format": FORMAT, **content}, data, pickle_protocol=2)  # in memory: torch hides a disk's errors
    with whole_files.told(path.parent):
        if not path.parent.is_dir():
            path.parent.mkdir()
            whole_files.sync_folder(path.parent.parent)
    whole_files.write(path, data.getbuffer())


def step_path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}.pt"


def steps(folder: Path) -> list[Path]:
    """The numbered checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"))


def best_path(folder: Path) -> Path:
    return folder / "checkpoints" / BEST


def prune(folder: Path, keep: int) -> None:
    for path in steps(folder)[:-keep]:
        path.unlink()


def find(place: Path) -> Path:
    """The checkpoint file that `place` means: itself, or a run folder's best, or its newest.

    Raises:
        UserError: there is none.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"checkpoint {place}: no such run folder or file")
    if best_path(place).is_file():
        return best_path(place)
    return newest(place)


def newest(folder: Path) -> Path:
    """The last numbered checkpoint of a run folder that is whole. Raises UserError where there is none."""
    found = steps(folder)
    if not found:
        raise UserError(f"{folder}: not a run folder with checkpoints (looked for checkpoints/step-*.pt in it)")
    faults = {}
    for path in reversed(found):
        fault = damage(path)
        if fault is None:
            return path
        faults[path.name] = fault
    raise UserError(f"{folder}: none of its checkpoints is whole: {'; '.join(map(' '.join, faults.items()))}")


def set_damaged_aside(folder: Path, whole: Path) -> list[Path]:
    """Rename what is newer than the newest whole checkpoint to NAME.damaged, so that it no longer counts as newest."""
    return [path.rename(path.with_name(f"{path.name}.damaged")) for path in steps(folder) if path > whole]


def rescue(folder: Path) -> str:
    """How to go on with a training run that a failing disk has ended: what is whole, and what to type."""
    if not folder.is_dir():
        return "if it was moved, go on with resume=FOLDER, its new place"
    if not steps(folder):
        return "the run had no checkpoint yet, start it again"
    try:
        whole = newest(folder)
    except UserError as error:
        return str(error)
    return f"{whole.name} is whole, go on with {pasteable('resume', nearby(folder))}"


def set_damaged_best_aside(folder: Path) -> str | None:
    """What is wrong with best.pt, which is then called best.pt.damaged; None where it is whole."""
    path = best_path(folder)
    if not path.exists():
        return f"{nearby(path)} is missing"
    fault = damage(path)
    if fault is None:
        return None
    return f"{nearby(path)} {fault}: it is kept as {path.rename(path.with_name(f'{path.name}.damaged')).name}"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises UserError where an entry of a checkpoint is missing or is not what it should be."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise UserError(f"checkpoint {path}: a run cannot go on from it: {type(error).__name__}, {error}") from error


def damage(path: Path) -> str | None:
    """What is wrong with the file, every part of which has a CRC-32 in it, or None; read a piece at a time."""
    return fault(path, untrusted.check)[0]


def load(place: Path) -> dict[str, Any]:
    """Read a checkpoint, as data only: no code in it is run, and it takes no more memory than its file has.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    path = find(place)
    wrong, content = fault(path, untrusted.read)
    if wrong:
        raise UserError(f"checkpoint {path}: {wrong}")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"checkpoint {path}: not a checkpoint of this version of metarun (format {FORMAT})")
    return content


def fault(path: Path, reader: Callable[[Path], Any]) -> tuple[str | None, Any]:
    """What is wrong with a file that `reader` reads, or None; and what was read."""
    try:
        return None, reader(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})", None
    except untrusted.Refused as error:
        return f"cannot be read: {error}; it is not one that metarun wrote", None
    except Exception as error:  # damaged bytes make zips and pickles say anything
        return f"cannot be read: cut short, damaged, or none ({first_line(error)})", None


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def tensors(content: dict[str, Any], kind: str, what: str) -> dict[str, Tensor]:
    """The parameters of a kind ("theta", "phi") that a checkpoint holds. Raises UserError where they are none."""
    found = content.get(kind)
    if not isinstance(found, dict) or not all(
        isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in found.values()
    ):
        raise UserError(f"checkpoint {what}: cannot be read: its {kind} is damaged")
    return found


def require_same_shapes(tensors: dict[str, Tensor], saved: dict[str, Tensor], what: str) -> None:
    """Whether the model's tensors, which may be without memory ("meta"), could take the saved ones.

    Raises:
        UserError: names or shapes differ, as they do for another architecture; names the first few.
    """
    if differ := differences(tensors, saved):
        raise UserError(
            f"checkpoint {what}: of another architecture: {differ}; "
            "leave out the keys that change backbone, method, ways or data set"
        )


def differences(tensors: dict[str, Tensor], saved: dict[str, Tensor]) -> str:
    """How the names and shapes of saved tensors differ from what is wanted, in words; nothing where they do not."""
    differ = [f"{name} is missing" for name in tensors if name not in saved]
    differ += [f"{name} is unknown" for name in saved if name not in tensors]
    differ += [
        f"{name} is {list(saved[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    return f"{'; '.join(differ[:3])}{more}"


def restore(tensors: dict[str, Tensor], saved: dict[str, Tensor], what: str) -> None:
    """Copy saved tensors into those of the model, in place.

    Raises:
        UserError: they are of another architecture.
    """
    require_same_shapes(tensors, saved, what)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
