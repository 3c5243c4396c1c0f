"""How every file of a data set is opened, and how damage is reported: one line that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from metarun.errors import UserError
from metarun.utils.safe_files import open_regular

RESTORE = "put back the original file"


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a UserError that names its file, or else `path`."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # raised by gzip for damaged bytes
            raise
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from error


@contextmanager
def read_errors(path: Path, what: str, remedy: str = RESTORE) -> Iterator[None]:
    """Turns any exception into a UserError that names the file: damaged bytes make their readers raise many types.

    Args:
        what: the content that was expected, with its article.
    """
    try:
        with os_errors(path):
            yield
    except UserError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not {what}, or damaged ({cause}); {remedy}") from error


@contextmanager
def open_data_file(path: Path, what: str, remedy: str = RESTORE) -> Iterator[BinaryIO]:
    """Opens a regular file. Raises UserError if that fails, if it is a web page, and for errors as `read_errors`."""
    with read_errors(path, what, remedy), open_regular(path) as file:
        refuse_web_page(file.read(512), path)
        file.seek(0)
        yield file


def refuse_web_page(start: bytes, path: Path) -> None:
    """Raises UserError if the first bytes of a file are HTML or XML, with which dead download links answer."""
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, not data; delete it and fetch the file again from its present address")
