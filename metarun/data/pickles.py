"""Pickles as data: numpy arrays and Python's own containers, and nothing that could run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from metarun.errors import UserError

ADMITTED = {  # all that the field's data files need
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


KINDS = "biufSUO"  # numbers, text and objects, which are unpickled one by one


class Array(np.ndarray):
    """Takes its dtype by the name alone: a pickled dtype may claim that bytes are pointers."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, *rest = state
        if not isinstance(dtype, np.dtype) or dtype.kind not in KINDS:
            raise pickle.UnpicklingError(f"it holds an array of {dtype}, which no data file needs")
        super().__setstate__((version, shape, np.dtype(dtype.str), *rest))


class Unpickler(pickle.Unpickler):
    """Refuses every name but those of arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data file needs")
        if name == "ndarray":
            return Array
        return super().find_class(module, name)


def load_pickle(path: Path) -> Any:
    """What the file holds; strings of Python 2 are read as latin-1.

    Raises:
        UserError: the file cannot be read, is a web page, is cut short, or would run something.
    """
    try:
        with path.open("rb") as file:
            return read_pickle(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_pickle(file: BinaryIO, path: Path) -> Any:
    """The same of a file that is open, as a member of an archive is; `path` names it in messages."""
    refuse_web_page(file.read(512), path)
    file.seek(0)
    try:
        return Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle fails in whatever it happens to say
        if isinstance(error, OSError):
            raise
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a pickle of arrays, or damaged ({cause}); put back the original file") from error


def refuse_web_page(start: bytes, path: Path) -> None:
    """Raises UserError where a file that begins so is what a dead download link answers with."""
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, not data; delete it and fetch the file again from where it really lies")
