"""What is opened of files that others made, and what is read out of them.

Only regular files are opened, so that a pipe is not waited for and a device not touched. What is read is bounded in
size before memory is taken for it, and is plain data: text, JSON, YAML, or a picture of a raster format.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from PIL.Image import Image

RECORD_BYTES = 2**22  # of a JSON or YAML file of a run folder, and of a line of metrics.jsonl
LIST_BYTES = 2**26  # of a list of classes or pictures, and of a table
YAML_BYTES = 2**20  # PyYAML reads some 100 kB a second
DEPTH = 50  # of lists and dicts in one another
FORMATS = (  # of pictures: each is decoded by Pillow itself, or by a library of pixels
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
PACKED = 200  # times its size that a file may unpack to, or ROOM where that is more: pictures pack a few times
ROOM = 2**28  # bytes
PIXELS = 2**26  # of a picture: 8192 x 8192
KINDS = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class UnsafeFile(PermissionError):
    """A file is not opened: its `strerror` says what it is, `filename` which."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(1, what, str(path))


# --- files -------------------------------------------------------------------------------------------------


def check_regular(path: Path, mode: int) -> None:
    """Raises UnsafeFile where a mode of `os.stat` is not that of a regular file."""
    if stat.S_ISDIR(mode):
        raise UnsafeFile(path, "it is a folder, not a file")
    if stat.S_ISLNK(mode):
        raise UnsafeFile(path, "it is a link, which is not followed here")
    if not stat.S_ISREG(mode):
        raise UnsafeFile(path, f"it is a {KINDS.get(stat.S_IFMT(mode), 'special file')}, not a regular file")


def is_regular(path: Path) -> bool:
    """Whether the path is, or links to, a regular file, or would be one if it could be looked at."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def open_regular(path: Path, links: bool = True) -> BinaryIO:
    """Open a regular file to read, without ever waiting.

    Args:
        links: follow `path` where it is a link. The folders above it may always be links.

    Raises:
        UnsafeFile: it is a pipe, socket, device or folder, or a link that is not to be followed.
        OSError: it is not there or may not be read.
    """
    check_regular(path, path.stat(follow_symlinks=links).st_mode)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | (0 if links else getattr(os, "O_NOFOLLOW", 0)))
    try:
        check_regular(path, os.fstat(descriptor).st_mode)  # another file may have taken its place
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def room(path: Path) -> int:
    """Bytes that a file may unpack to."""
    return max(ROOM, PACKED * path.stat().st_size)


def require_room(path: Path, unpacked: int) -> None:
    """Raises ValueError where a file says that it unpacks to more than files of data do."""
    if unpacked > room(path):
        raise ValueError(f"would unpack to {unpacked} bytes")


def require_unlinked(folder: Path, names: Sequence[str]) -> None:
    """Look at files and folders of `folder` before they are written to, and at what lies in those that are folders.

    Raises:
        UnsafeFile: one of them is a link or no regular file, so that writing might change a file elsewhere, or wait.
    """
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            require_unlinked(
                path, [entry.name for entry in os.scandir(path) if not entry.is_dir(follow_symlinks=False)]
            )
        elif os.path.lexists(path):
            check_regular(path, path.lstat().st_mode)


# --- text --------------------------------------------------------------------------------------------------


def read_bytes(path: Path, most: int, links: bool = True) -> bytes:
    """Raises ValueError where there are more than `most` bytes; OSError as `open_regular`."""
    with open_regular(path, links) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"has more than {most} bytes")
    return content


def read_text(path: Path, most: int = LIST_BYTES, links: bool = True) -> str:
    """UTF-8, or UTF-16 with its byte order mark. Raises ValueError for anything else; otherwise as `read_bytes`."""
    content = read_bytes(path, most, links)
    return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def read_json(path: Path, most: int = LIST_BYTES, links: bool = True) -> Any:
    """The content of a JSON file; raises as `parse_json` and `read_text`."""
    return parse_json(read_text(path, most, links))


def parse_json(text: str | bytes) -> Any:
    """Dicts, lists, text, finite numbers, bools and None.

    Raises:
        ValueError: no JSON, a number that is not finite or of more than 64 bits, or too deep a nesting.
    """
    try:
        return plain(json.loads(text, parse_constant=refuse_constant, parse_int=whole_number))
    except RecursionError as error:
        raise ValueError(f"nested more than {DEPTH} deep") from error


def read_yaml(path: Path, links: bool = True) -> Any:
    """The content of a YAML file that holds what JSON can hold. Aliases, which few bytes can multiply, are refused.

    Raises:
        ValueError: no YAML, an alias, a value that JSON does not have, or as `parse_json`.
        OSError: as `open_regular`.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("holds an alias, which metarun does not write")
            return super().compose_node(parent, index)

    try:
        return plain(yaml.load(read_text(path, YAML_BYTES, links), Loader))
    except yaml.YAMLError as error:
        raise ValueError((getattr(error, "problem", None) or str(error).splitlines()[0])[:80]) from error
    except RecursionError as error:
        raise ValueError(f"nested more than {DEPTH} deep") from error


def refuse_constant(word: str) -> Any:
    raise ValueError(f"holds {word}, which is no number of JSON")


def whole_number(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("holds a whole number of more than 64 bits")
    return int(digits)


def plain(content: Any) -> Any:
    """The content itself. Raises ValueError where it is no plain data: see `parse_json`."""
    level = [content]
    for _ in range(DEPTH):
        inside: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inside += value.values()
                if not all(isinstance(key, str | int | float | None) for key in value):
                    raise ValueError("holds a key that is no text")
            elif isinstance(value, list):
                inside += value
            elif not isinstance(value, str | int | float | None):
                raise ValueError(f"holds {type(value).__name__}, which is no plain value")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"holds {value}, which is not finite")
            elif isinstance(value, int) and abs(value) >= 2**64:
                raise ValueError("holds a whole number of more than 64 bits")
        if not inside:
            return content
        level = inside
    raise ValueError(f"nested more than {DEPTH} deep")


# --- pictures ----------------------------------------------------------------------------------------------


@contextmanager
def open_picture(raw: bytes | Path) -> Iterator[Image]:
    """A picture of one of FORMATS and of at most PIXELS, not yet decoded.

    Raises:
        ValueError: it has more pixels.
        Exception: as `open_regular`, or whatever Pillow says of damaged bytes.
    """
    import PIL.Image

    with (
        io.BytesIO(raw) if isinstance(raw, bytes) else open_regular(raw) as file,
        PIL.Image.open(file, formats=formats()) as picture,
    ):
        if math.prod(picture.size) > PIXELS:
            raise ValueError(f"it has {picture.width} x {picture.height} pixels, at most {PIXELS} are decoded")
        yield picture


@functools.cache
def formats() -> list[str]:
    """Those of FORMATS that this Pillow has."""
    import PIL.Image

    PIL.Image.init()
    return [name for name in FORMATS if name in PIL.Image.OPEN]
