"""Archives of a data set: unpacked into a temporary folder for as long as they are read."""

import errno
import gzip
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from io import BufferedIOBase
from pathlib import Path, PureWindowsPath
from typing import IO, Any, BinaryIO

from metarun.data.cache import RawDataset
from metarun.data.formats.detect import FormatDetector, FoundFormat, detect_format
from metarun.data.formats.reading import open_data_file
from metarun.data.image_spec import Raw
from metarun.errors import UserError
from metarun.utils.safe_files import room

NAME_ERRNOS = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)  # due to a member's name
BLOCK = 4096  # bytes that a file or folder takes besides its content
DEPTH = 2  # levels of folders in an archive that may lie above the data set
FETCH_AGAIN = "delete it and fetch the archive again"


def archive_detector(names: Sequence[str], cache_dir: Path, detectors: Sequence[FormatDetector]) -> FormatDetector:
    """Detector of an archive with one of the names that holds a format that one of `detectors` finds.

    The archive is unpacked below cache_dir, and its files stay there until the stack given to `read` is closed.
    """

    def detector(folder: Path) -> FoundFormat | None:
        archive = next((folder / name for name in names if (folder / name).is_file()), None)
        if archive is None:
            return None
        return FoundFormat("an archive", [archive], lambda stack: read_archive(archive, cache_dir, detectors, stack))

    return detector


def read_archive(archive: Path, cache_dir: Path, detectors: Sequence[FormatDetector], stack: ExitStack) -> RawDataset:
    top = stack.enter_context(unpacked(archive, cache_dir))
    folders = level = [top]
    for _ in range(DEPTH):
        level = sorted(path for folder in level for path in folder.iterdir() if path.is_dir())
        folders = folders + level
    with archive_in_messages(top, archive):
        found = detect_format(folders, detectors)
        if found is None:
            raise UserError(f"{archive}: holds no known format of the data set; {FETCH_AGAIN}, or unpack it")
        raw = found[1].read(stack)

    def images() -> Iterator[tuple[str, Raw]]:
        with archive_in_messages(top, archive):
            for name, image in raw.images:
                yield name.replace(str(top), str(archive)), image

    return raw._replace(images=images())


@contextmanager
def archive_in_messages(top: Path, archive: Path) -> Iterator[None]:
    """Replaces the temporary folder by the archive in a UserError's message."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(top), str(archive))) from error


# --- unpacking ---------------------------------------------------------------------------------------------


@contextmanager
def unpacked(archive: Path, cache_dir: Path) -> Iterator[Path]:
    """Temporary folder below cache_dir with the content of a .tar, .tar.gz, .tgz or .zip file.

    Raises:
        UserError: the archive is damaged, a web page, or far larger unpacked; it holds links, devices, or names that
            lead out of the folder; cache_dir cannot be written.
    """
    try:
        temporary = tempfile.TemporaryDirectory(prefix="unpacked-", dir=cache_dir)
    except OSError as error:
        raise cannot_unpack_error(archive, cache_dir, error) from error
    with temporary as top:
        with open_data_file(archive, "a whole tar or zip archive of plain files", FETCH_AGAIN) as file:
            most = left = room(archive)
            for name, content in members(file):
                try:
                    left -= write_member(Path(top), name, content, left)
                except OSError as error:
                    if error.errno in NAME_ERRNOS:
                        raise ValueError(f"{error.strerror}: its member {name!r}") from error
                    if error.errno is None:  # raised by gzip
                        raise
                    raise cannot_unpack_error(archive, cache_dir, error) from error
                if left < 0:
                    raise ValueError(f"it unpacks to more than {most} bytes, as no data set does")
        yield Path(top)


def members(file: BinaryIO) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of each file of a tar or zip archive; the content of a folder is None.

    The first bytes of the archive decide its type. Raises ValueError for links, devices and the like.
    """
    start = file.read(2)
    file.seek(0)
    if start == b"PK":
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise not_plain_error(info.filename)
                with nullcontext() if info.is_dir() else archive.open(info) as content:
                    yield info.filename, content
        return
    with gzip.open(file) if start == b"\x1f\x8b" else nullcontext(file) as tar:
        bounded: Any = LastReadFile(tar)
        with tarfile.open(fileobj=bounded, mode="r:") as archive:
            for info in archive:
                if not (info.isreg() or info.isdir()):
                    raise not_plain_error(info.name)
                yield info.name, archive.extractfile(info)
        if bounded.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut between two members for the end
            raise EOFError("it ends without an end mark")
        while tar.read(2**20):  # up to the checksum of gzip
            pass


def not_plain_error(name: str) -> ValueError:
    return ValueError(f"its member {name!r} is a link, a device or the like")


class LastReadFile:
    """A file that keeps what was read from it last, and refuses to read more than `most` bytes at a time."""

    def __init__(self, file: BufferedIOBase | BinaryIO, most: int = 2**24) -> None:
        self.file, self.last, self.max_read = file, b"", most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.max_read:
            raise ValueError(f"a header of {size} bytes")
        self.last = self.file.read(size)
        return self.last


def write_member(top: Path, name: str, content: IO[bytes] | None, left: int) -> int:
    """Write one member below `top`, but not much more than `left` bytes. Returns the bytes that it takes on disk.

    Raises:
        ValueError: it would lie outside `top` on some operating system.
        FileExistsError: another member has the same name.
    """
    path = PureWindowsPath(name)  # which knows slashes of both kinds, and drives
    if path.anchor or ".." in path.parts:
        raise ValueError(f"its member {name!r} would lie outside the folder that it is unpacked into")
    place = top / name
    if content is None:
        place.mkdir(parents=True, exist_ok=True)
        return BLOCK
    place.parent.mkdir(parents=True, exist_ok=True)
    taken = BLOCK
    with place.open("xb") as file:
        while taken <= left and (part := content.read(2**20)):
            taken += file.write(part)
    return taken


def cannot_unpack_error(archive: Path, cache_dir: Path, error: OSError) -> UserError:
    cause = error.strerror or error
    return UserError(
        f"cache_dir: cannot unpack {archive} into {cache_dir} ({cause}); choose another folder with cache_dir=FOLDER"
    )
