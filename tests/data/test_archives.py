"""Archives of other people's: unpacked whole or not at all, never outside of their folder, and gone afterwards."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarun.data.cache import CachedDataset, load_or_build_cache
from metarun.data.formats.archives import archive_detector, unpacked
from metarun.data.formats.detect import FormatDetector, FoundFormat
from metarun.data.formats.image_folders import listing_format
from metarun.data.formats.listing import classes_in
from metarun.data.image_spec import ImageSpec
from metarun.errors import UserError
from metarun.utils import safe_files
from tests.helpers.image_forms import put


def class_folders(folder: Path) -> FoundFormat | None:
    listing = classes_in(folder)
    return listing_format("class folders", listing, folder) if listing else None


FILES = {"top/a/1.txt": b"first", "top/a/2.bin": bytes(range(256)) * 40, "top/b/3.txt": b"", "4.txt": b"last"}
KINDS = pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip"])


def tar_of(*members: tuple[str, Any], mode: str = "w") -> bytes:
    """Of names with their content, or with what makes them no files."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                archive.addfile(info)
    return file.getvalue()


def zip_of(*members: tuple[str, bytes], mode: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is, with whatever slashes
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return file.getvalue()


def archive_of(name: str, files: dict[str, bytes]) -> bytes:
    if name.endswith(".zip"):
        return zip_of(*files.items())
    return tar_of(*files.items(), mode="w" if name.endswith(".tar") else "w:gz")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(archive: Path, cache: Path) -> str:
    """Whatever it refuses, nothing is left of it, and nothing lies beside it."""
    before = tree(cache.parent)
    with pytest.raises(UserError) as caught, unpacked(archive, cache):
        pass
    assert tree(cache.parent) == before
    assert not list(cache.iterdir())
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@KINDS
def test_unpack(name: str, tmp_path: Path, cache: Path) -> None:
    put(tmp_path / name, archive_of(name, FILES))
    with unpacked(tmp_path / name, cache) as top:
        assert tree(top) == FILES
        assert list(cache.iterdir()) == [top]
    assert not list(cache.iterdir())


@KINDS
def test_the_first_bytes_say_what_it_is(name: str, tmp_path: Path, cache: Path) -> None:
    """As browsers unpack .tar.gz on the way and leave the name."""
    put(tmp_path / "mini-imagenet.tar.gz", archive_of(name, FILES))
    with unpacked(tmp_path / "mini-imagenet.tar.gz", cache) as top:
        assert tree(top) == FILES


LINKS = {
    "a symbolic link": (tarfile.SYMTYPE, "/etc/passwd"),
    "a symbolic link within": (tarfile.SYMTYPE, "a.txt"),
    "a hard link": (tarfile.LNKTYPE, "a.txt"),
    "a pipe": (tarfile.FIFOTYPE, ""),
    "a device": (tarfile.CHRTYPE, ""),
}


@pytest.mark.parametrize("kind", LINKS)
def test_members_that_are_no_files(kind: str, tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "a.tar", tar_of(("a.txt", b"good"), ("bad", LINKS[kind]), ("bad/x", b"through it")))
    message = refusal(tmp_path / "a.tar", cache)
    assert message.startswith(f"{tmp_path / 'a.tar'}: ") and "its member 'bad' is a link, a device" in message


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO])
def test_zip_members_that_are_no_files(mode: int, tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "a.zip", zip_of(("bad", b"/etc/passwd"), mode=mode | 0o777))
    assert "its member 'bad' is a link, a device" in refusal(tmp_path / "a.zip", cache)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    "name",
    ["../out.txt", "a/../../out.txt", "/out.txt", "a/..", "..\\out.txt", "\\out.txt", "C:\\out.txt", "C:out.txt"],
)
def test_names_that_lead_out(kind: str, name: str, tmp_path: Path, cache: Path) -> None:
    name = name.replace("/out", f"{tmp_path}/out") if name == "/out.txt" else name
    put(tmp_path / "a", (tar_of if kind == "tar" else zip_of)(("good.txt", b"good"), (name, b"bad")))
    message = refusal(tmp_path / "a", cache)
    assert message.startswith(f"{tmp_path / 'a'}: ") and f"its member {name!r} would lie outside the" in message


def test_one_name_for_a_file_and_a_folder(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "a.tar", tar_of(("a", b"file"), ("a/b", b"below it")))
    assert refusal(tmp_path / "a.tar", cache).startswith(f"{tmp_path / 'a.tar'}: not a whole tar or zip archive")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice(tmp_path: Path, cache: Path) -> None:
    for name, content in (("a.tar", tar_of), ("a.zip", zip_of)):
        (tmp_path / name).write_bytes(content(("a.txt", b"first"), ("a.txt", b"second")))
        assert "File exists" in refusal(tmp_path / name, cache)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_bombs(name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one large member, and of many small ones."""
    monkeypatch.setattr(safe_files, "ROOM", 2**20)
    monkeypatch.setattr(safe_files, "PACKED", 10)
    for files in ({"zeros": bytes(2**22)}, {f"{number}": b"" for number in range(300)}):
        content = gzip.compress(archive_of("a.tar", files)) if "gz" in name else zip_deflated(files)
        (tmp_path / name).write_bytes(content)
        assert "unpacks to more than" in refusal(tmp_path / name, cache)


def zip_deflated(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_a_header_that_is_a_bomb(tmp_path: Path, cache: Path) -> None:
    """Of a member's long name, which tarfile would hold in memory."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**25
        archive.addfile(info, io.BytesIO(bytes(2**25)))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(file.getvalue()))
    assert "a header of 33554432 bytes" in refusal(tmp_path / "a.tar.gz", cache)


@KINDS
def test_cut_short(name: str, tmp_path: Path, cache: Path) -> None:
    """Wherever a download broke off, between two members too."""
    path = tmp_path / name
    whole = archive_of(name, FILES)
    used = len(whole.rstrip(b"\0")) if name == "a.tar" else len(whole)
    blocks = range(512, used, 1024 if name == "a.tar" else 10**6)
    for end in sorted({0, 1, 3, *np.linspace(5, used - 1, 12).astype(int).tolist(), *blocks}):
        path.write_bytes(whole[:end])
        assert refusal(path, cache).startswith(f"{path}: not a whole tar or zip archive"), end


@KINDS
def test_damaged_within(name: str, tmp_path: Path, cache: Path) -> None:
    """What compression and checksums see; a plain tar has none but of its headers."""
    path = tmp_path / name
    whole = bytearray(archive_of(name, {f"{i}.txt": bytes(range(i, 200 + i)) * 9 for i in range(5)}))
    middle = whole.index(b"3.txt") if name != "a.tgz" and name != "a.tar.gz" else len(whole) // 2
    whole[middle : middle + 30] = b"\xff" * 30
    path.write_bytes(whole)
    assert refusal(path, cache).startswith(f"{path}: not a whole tar or zip archive")


def test_damaged_checksum_of_gzip(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "a.tgz", gzip.compress(tar_of(*FILES.items()))[:-8] + bytes(8))
    assert "CRC check failed" in refusal(tmp_path / "a.tgz", cache)


@pytest.mark.parametrize("content", [b"<html>sign in</html>", b"\n<!doctype html>"])
def test_a_web_page(content: bytes, tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "a.tgz", content)
    assert refusal(tmp_path / "a.tgz", cache).startswith(f"{tmp_path / 'a.tgz'}: a web page, not data")


def test_a_protected_zip(tmp_path: Path, cache: Path) -> None:
    content = bytearray(zip_of(("a.txt", b"secret")))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + offset] |= 1
    put(tmp_path / "a.zip", bytes(content))
    assert "is encrypted" in refusal(tmp_path / "a.zip", cache)


def test_no_room(tmp_path: Path) -> None:
    put(tmp_path / "a.zip", archive_of("a.zip", FILES))
    with (
        pytest.raises(UserError, match=r"cache_dir: cannot unpack .*a.zip into .*missing \(No such file"),
        unpacked(tmp_path / "a.zip", tmp_path / "missing"),
    ):
        pass


# --- as a form ---------------------------------------------------------------------------------------------

LOOK = ImageSpec(4, 1)


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


def classes_named_c(folder: Path) -> Any:
    """A finder of class folders, one of which is called c1."""
    return class_folders(folder) if (folder / "c1").is_dir() else None


def prepare(tmp_path: Path, files: dict[str, bytes], finder: FormatDetector = classes_named_c) -> CachedDataset:
    put(tmp_path / "data" / "set.tgz", archive_of("set.tgz", files))
    cache = tmp_path / "cache"
    form = archive_detector(["set.zip", "set.tgz"], cache, [finder])(tmp_path / "data")
    assert form is not None and form.files == [tmp_path / "data" / "set.tgz"]
    return load_or_build_cache(cache, "set", LOOK, tmp_path / "data", form.read)


@pytest.mark.parametrize("inside", ["", "top/", "top/images/"])
def test_archived(inside: str, tmp_path: Path) -> None:
    """The form may lie two folders deep; what was unpacked is gone once it is prepared."""
    found = prepare(tmp_path, {f"{inside}c1/x.png": png(10), f"{inside}c2/y.png": png(20), "readme.txt": b"of them"})
    assert found.manifest.names[-2:] == ["c1", "c2"]
    assert found.images[:, 0, 0, 0].tolist() == [10, 20]
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert list((tmp_path / "data").iterdir()) == [tmp_path / "data" / "set.tgz"]


def test_archived_too_deep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data/set.tgz: holds no known format of the data set"):
        prepare(tmp_path, {"one/two/three/c1/x.png": png(10)})
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.parametrize("bad", [b"no picture", png(10)[:50]])
def test_archived_with_damage_inside(bad: bytes, tmp_path: Path) -> None:
    """It is named by its place in the archive, not in the folder that is gone."""
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, {"c1/x.png": png(10), "c1/y.png": bad})
    assert str(caught.value).startswith(f"{tmp_path / 'data' / 'set.tgz'}/c1/y.png: cannot be read as an image (")
    assert "unpacked-" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_archived_mistakes_of_finders(tmp_path: Path) -> None:
    """Whether they are made while finding, while listing, or while reading."""

    def finding(folder: Path) -> Any:
        raise UserError(f"{folder / 'train.csv'}: not a CSV file")

    def listing(folder: Path) -> Any:
        def contents(_: ExitStack) -> Any:
            finding(folder)

        form = class_folders(folder)
        return form and form._replace(read=contents)

    def reading(folder: Path) -> Any:
        def contents(stack: ExitStack) -> Any:
            assert form is not None
            return form.read(stack)._replace(images=(finding(folder) for _ in range(1)))

        form = class_folders(folder)
        return form and form._replace(read=contents)

    for finder in (finding, listing, reading):
        with pytest.raises(UserError) as caught:
            prepare(tmp_path, {"c1/x.png": png(10)}, finder)
        assert str(caught.value) == f"{tmp_path / 'data' / 'set.tgz'}/train.csv: not a CSV file"


def test_no_archive(tmp_path: Path) -> None:
    put(tmp_path / "other.tgz", b"")
    assert archive_detector(["set.tgz"], tmp_path, [classes_named_c])(tmp_path) is None


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    put(tmp_path / "set.tgz", archive_of("set.tgz", FILES))
    form = archive_detector(["set.tgz"], tmp_path / "missing", [classes_named_c])(tmp_path)
    assert form is not None
    with ExitStack() as stack, pytest.raises(UserError, match=r"cache_dir: cannot unpack .*set.tgz into .*missing"):
        form.read(stack)
