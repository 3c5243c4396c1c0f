"""Readers for files from untrusted sources: text, JSON, YAML and images.

Only regular files are opened, so that a pipe does not block and a device is not touched. Sizes are limited before
memory is allocated.
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

RECORD_BYTES = 2**22  # largest JSON file of a run folder, and longest line of metrics.jsonl
LIST_BYTES = 2**26  # largest list of classes or images, and largest table
YAML_BYTES = 2**20  # PyYAML reads some 100 kB a second
DEPTH = 50  # deepest nesting of lists and dicts
FORMATS = (  # image formats that Pillow decodes itself or by a library of pixels
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
PACKED = 200  # a file may unpack to this many times its size, and to ROOM bytes in any case
ROOM = 2**28
PIXELS = 2**26  # largest image: 8192 x 8192
KINDS = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class UnsafeFile(PermissionError):
    """A file that is not regular was not opened. `strerror` says what it is."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(1, what, str(path))


def check_regular(path: Path, mode: int) -> None:
    """Raise UnsafeFile if `mode`, the `st_mode` of `path`, is not that of a regular file."""
    if stat.S_ISDIR(mode):
        raise UnsafeFile(path, "it is a folder, not a file")
    if stat.S_ISLNK(mode):
        raise UnsafeFile(path, "it is a link, which is not followed here")
    if not stat.S_ISREG(mode):
        raise UnsafeFile(path, f"it is a {KINDS.get(stat.S_IFMT(mode), 'special file')}, not a regular file")


def is_regular(path: Path) -> bool:
    """Whether the path is, or links to, a regular file. True if the file cannot be examined."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def open_regular(path: Path, links: bool = True) -> BinaryIO:
    """Open a regular file for reading, without blocking.

    Args:
        links: follow `path` if it is a link. Its parent folders may always be links.

    Raises:
        UnsafeFile: it is a pipe, socket, device or folder, or a link with `links=False`.
        OSError: it is missing or not readable.
    """
    check_regular(path, path.stat(follow_symlinks=links).st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
    try:
        check_regular(path, os.fstat(descriptor).st_mode)  # it may have been replaced since
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def room(path: Path) -> int:
    """Largest size in bytes to which a file may unpack."""
    return max(ROOM, PACKED * path.stat().st_size)


def require_room(path: Path, unpacked: int) -> None:
    """Raise ValueError if the stated unpacked size is more than `room` allows."""
    if unpacked > room(path):
        raise ValueError(f"would unpack to {unpacked} bytes")


def require_unlinked(folder: Path, names: Sequence[str]) -> None:
    """Check the named files of `folder`, and the files in its named subfolders, before they are written to.

    Raises:
        UnsafeFile: one is a link or not a regular file, so that writing might change a file elsewhere, or block.
    """
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            require_unlinked(
                path, [entry.name for entry in os.scandir(path) if not entry.is_dir(follow_symlinks=False)]
            )
        elif os.path.lexists(path):
            check_regular(path, path.lstat().st_mode)


def read_bytes(path: Path, most: int, links: bool = True) -> bytes:
    """The content of a file. Raises ValueError if it has more than `most` bytes, and OSError as `open_regular`."""
    with open_regular(path, links) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"has more than {most} bytes")
    return content


def read_text(path: Path, most: int = LIST_BYTES, links: bool = True) -> str:
    """Read text in UTF-8, or UTF-16 with a byte order mark. Raises ValueError otherwise, and as `read_bytes`."""
    content = read_bytes(path, most, links)
    return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def read_json(path: Path, most: int = LIST_BYTES, links: bool = True) -> Any:
    """Read a JSON file. Raises as `parse_json` and `read_text`."""
    return parse_json(read_text(path, most, links))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError for invalid JSON, and as `check_plain`."""
    try:
        return check_plain(json.loads(text, parse_int=parse_int))
    except RecursionError as error:
        raise ValueError(f"nested more than {DEPTH} deep") from error


def read_yaml(path: Path, links: bool = True) -> Any:
    """Read a YAML file of plain data. Aliases are refused, since a small file could expand to a huge object.

    Raises:
        ValueError: invalid YAML, an alias, or as `check_plain`.
        OSError: as `open_regular`.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("holds an alias, which metarun does not write")
            return super().compose_node(parent, index)

    try:
        return check_plain(yaml.load(read_text(path, YAML_BYTES, links), Loader))
    except yaml.YAMLError as error:
        raise ValueError((getattr(error, "problem", None) or str(error).splitlines()[0])[:80]) from error
    except RecursionError as error:
        raise ValueError(f"nested more than {DEPTH} deep") from error


def parse_int(digits: str) -> int:
    if len(digits) > 20:  # int() takes quadratic time
        raise ValueError("holds a whole number of more than 64 bits")
    return int(digits)


def check_plain(content: Any) -> Any:
    """Return `content` if it consists of dicts, lists, text, finite numbers, bools and None.

    Raises:
        ValueError: another type, a number that is not finite or has more than 64 bits, or nesting beyond DEPTH.
    """
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


@contextmanager
def open_picture(raw: bytes | Path) -> Iterator[Image]:
    """Open an image of one of FORMATS and of at most PIXELS, without decoding it.

    Raises:
        ValueError: it has more pixels.
        Exception: as `open_regular`, or any error of Pillow for damaged content.
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
    """The FORMATS that the installed Pillow supports."""
    import PIL.Image

    PIL.Image.init()
    return [name for name in FORMATS if name in PIL.Image.OPEN]
