"""Archives that others made: unpacked with care into a folder of their own, for as long as they are read."""

from __future__ import annotations

import errno
import gzip
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from io import BufferedIOBase
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple

from metarun.data.cache import RawDataset
from metarun.data.formats.detect import FormatDetector, FoundFormat, detect_format
from metarun.data.formats.pickles import refuse_web_page
from metarun.data.image_spec import Raw
from metarun.errors import UserError
from metarun.utils.safe_files import open_regular, room

GZIP = b"\x1f\x8b"
ZIP = b"PK"
NAME_ERRNOS = (
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.EINVAL,
)  # the fault of members' names
BLOCK = 4096  # bytes that a file or folder takes beside its content
AGAIN = "delete it and fetch the archive again"


def archive_detector(names: Sequence[str], cache_dir: Path, finders: Sequence[FormatDetector]) -> FormatDetector:
    """A finder of an archive that has one of the names.

    Its contents are unpacked below cache_dir, and lie there until the stack that was given for them is closed. They
    are of the first form that one of the finders knows, at most two folders deep.
    """

    def finder(folder: Path) -> FoundFormat | None:
        archive = next((folder / name for name in names if (folder / name).is_file()), None)
        if archive is None:
            return None
        return FoundFormat("an archive", [archive], lambda stack: read_archive(archive, cache_dir, finders, stack))

    return finder


def read_archive(archive: Path, cache_dir: Path, finders: Sequence[FormatDetector], stack: ExitStack) -> RawDataset:
    try:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="unpacked-", dir=cache_dir))
    except OSError as error:
        raise cannot_unpack_error(archive, cache_dir, error) from error
    top = unpack(archive, Path(folder) / "archive")
    try:
        found = detect_format(list(subfolders(top, 2)), finders)
        if found is None:
            raise UserError(f"{archive}: holds no form of the data set that is known here; {AGAIN}, or unpack it")
        contents = found[1].read(stack)
    except UserError as error:
        raise name_archive(error, top, archive) from error
    return contents._replace(images=iterate_images(contents, top, archive))


def subfolders(folder: Path, depth: int) -> Iterator[Path]:
    """The folder, then those in it, then those in them."""
    level = [folder]
    for _ in range(depth):
        yield from level
        level = sorted(path for above in level for path in above.iterdir() if path.is_dir())
    yield from level


def iterate_images(contents: RawDataset, top: Path, archive: Path) -> Iterator[tuple[str, Raw]]:
    try:
        for name, raw in contents.images:
            yield name.replace(str(top), str(archive)), raw
    except UserError as error:
        raise name_archive(error, top, archive) from error


def name_archive(error: UserError, top: Path, archive: Path) -> UserError:
    """The same mistake, said of the archive, as what was unpacked is gone when a person reads it."""
    return UserError(str(error).replace(str(top), str(archive)))


# --- unpacking ---------------------------------------------------------------------------------------------


class ArchiveMember(NamedTuple):
    name: str
    kind: str  # "file", "folder", or what else it is, in words
    content: IO[bytes] | None


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a .tar, .tar.gz, .tgz or .zip into a new folder, wholly or not at all.

    Raises:
        UserError: it is damaged or a web page; it holds links, devices, or names that lead out of the folder;
            the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="unpacking-", dir=into.parent) as part:
            top = Path(part) / "whole"
            top.mkdir()
            left = room(archive)
            with closing(members(archive)) as found:
                for member in found:
                    left -= write_member(member, top, archive, left)
                    if left < 0:
                        raise UserError(
                            f"{archive}: unpacks to more than {room(archive)} bytes, as no data set does; {AGAIN}"
                        )
            top.replace(into)
    except UserError:
        raise
    except Exception as error:  # damaged bytes make their readers say anything
        if isinstance(error, OSError) and error.errno not in (None, *NAME_ERRNOS):
            raise cannot_unpack_error(archive, into.parent, error) from error
        raise damaged_error(archive, error) from error
    return into


def members(archive: Path) -> Generator[ArchiveMember, None, None]:
    """What is in the archive, whose first bytes say which kind it is, whatever its name."""
    try:
        with open_regular(archive) as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{archive}: cannot be read ({error.strerror or error})") from error
    refuse_web_page(start, archive)
    if start.startswith(ZIP):
        with zipfile.ZipFile(archive) as opened:
            yield from zip_members(opened)
    else:
        with gzip.open(archive) if start.startswith(GZIP) else archive.open("rb") as file:
            yield from tar_members(file)


def zip_members(archive: zipfile.ZipFile) -> Iterator[ArchiveMember]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            yield ArchiveMember(info.filename, "a link", None)
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield ArchiveMember(info.filename, "a device or the like", None)
        elif info.is_dir():
            yield ArchiveMember(info.filename, "folder", None)
        else:
            with archive.open(info) as content:
                yield ArchiveMember(info.filename, "file", content)


def tar_members(file: BufferedIOBase) -> Iterator[ArchiveMember]:
    watched = LastReadFile(file)
    with tarfile.open(fileobj=watched, mode="r:") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for info in archive:
            if info.issym() or info.islnk():
                yield ArchiveMember(info.name, "a link", None)
            elif info.isdir():
                yield ArchiveMember(info.name, "folder", None)
            elif info.isreg():
                yield ArchiveMember(info.name, "file", archive.extractfile(info))
            else:
                yield ArchiveMember(info.name, "a device or the like", None)
    if watched.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut between two members for the end
        raise EOFError("it ends without an end mark")
    while file.read(2**20):  # to the checksum of gzip
        pass


class LastReadFile:
    """A file that keeps what was read from it last, and reads no more than `most` bytes at a time."""

    def __init__(self, file: BufferedIOBase, most: int = 2**24) -> None:
        self.file, self.last, self.max_read = file, b"", most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.max_read:
            raise ValueError(f"a header of {size} bytes")
        self.last = self.file.read(size)
        return self.last


def write_member(member: ArchiveMember, top: Path, archive: Path, left: int) -> int:
    """Write one member below `top`, but not much more than `left` bytes; returns the bytes that it takes.

    Raises:
        UserError: it is no file or folder, or would lie elsewhere.
        FileExistsError: another had its name.
    """
    if member.kind not in ("file", "folder"):
        raise UserError(f"{archive}: its member {member.name!r} is {member.kind}, which no data set needs; {AGAIN}")
    if is_unsafe_path(member.name):
        raise UserError(f"{archive}: its member {member.name!r} would lie outside of where it is unpacked; {AGAIN}")
    place = top / member.name
    if member.kind == "folder":
        place.mkdir(parents=True, exist_ok=True)
        return BLOCK
    place.parent.mkdir(parents=True, exist_ok=True)
    assert member.content is not None
    taken = BLOCK
    with place.open("xb") as file:
        while taken <= left and (part := member.content.read(2**20)):
            taken += file.write(part)
    return taken


def is_unsafe_path(name: str) -> bool:
    """Whether a name is absolute or climbs, on any system."""
    path = PureWindowsPath(name)  # which knows slashes of both kinds, and drives
    return bool(path.anchor) or ".." in path.parts


def damaged_error(archive: Path, error: Exception) -> UserError:
    cause = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{archive}: not a whole tar or zip archive ({cause}); {AGAIN}")


def cannot_unpack_error(archive: Path, folder: Path, error: OSError) -> UserError:
    cause = error.strerror or error
    return UserError(
        f"cache_dir: cannot unpack {archive} into {folder} ({cause}); choose another folder with cache_dir=FOLDER"
    )
