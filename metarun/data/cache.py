"""Prepared images kept on disk, so that decoding or drawing is done once."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from metarun.errors import UserError

log = logging.getLogger(__name__)


def cached(path: Path, shape: tuple[int, ...], build: Callable[[], np.ndarray]) -> np.ndarray:
    """The uint8 array of `shape` kept at `path` (`.npy`); built and written there if there is none or it is damaged.

    Two processes may start at once: each writes a file of its own and renames it, so that a reader sees a whole
    file or none.

    Raises:
        UserError: the folder cannot be made or written, or the file is there but cannot be read.
    """
    array = read(path, shape)
    if array is not None:
        return array
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch(exist_ok=False)  # whether it can be written is known before the work
        except OSError as error:
            raise refusal("write", path, error) from error
        array = build()
        try:
            write(partial, array)
            partial.replace(path)
        except OSError as error:
            raise refusal("write", path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return array


def write(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array at `path`, or None where there is no file or a damaged one."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(f"it holds {array.dtype} {array.shape}, not uint8 {shape}")
        return array
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        log.warning("%s is damaged (%s); it is made again", path, " ".join(str(error).split()))
        return None
    except OSError as error:
        raise refusal("read", path, error) from error


def refusal(verb: str, path: Path, error: OSError) -> UserError:
    cause = error.strerror or error
    return UserError(f"cache_dir: cannot {verb} {path} ({cause}); choose another folder with cache_dir=FOLDER")
