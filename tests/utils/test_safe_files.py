"""Only regular files of bounded size are opened, and what is read is plain data."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from metarun.utils import safe_files
from metarun.utils.safe_files import (
    UnsafeFile,
    is_regular,
    open_picture,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_yaml,
    require_unlinked,
)


def test_a_pipe_a_socket_a_device_and_a_folder_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "socket"))
    try:
        for path, what in (
            (tmp_path / "pipe", "a pipe, not a regular file"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a device"),
            (tmp_path, "a folder"),
        ):
            with pytest.raises(UnsafeFile, match=what) as refused:
                open_regular(path)
            assert refused.value.filename == str(path) and not is_regular(path)
    finally:
        bound.close()


def test_links_are_followed_only_where_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 4) == b"text"
    with pytest.raises(UnsafeFile, match="link"):
        open_regular(tmp_path / "link", links=False)
    (tmp_path / "device").symlink_to("/dev/zero")
    with pytest.raises(UnsafeFile, match="device"):
        open_regular(tmp_path / "device")


def test_what_is_read_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(5))
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_bytes(tmp_path / "large", 4)
    with Path("/proc/self/status").open("rb") as file:
        assert file.read(10)
    with pytest.raises(ValueError, match="more than 4 bytes"):  # which says that it has none
        read_bytes(Path("/proc/self/status"), 4)


@pytest.mark.parametrize("name", ["log", "folder"])
def test_links_and_pipes_among_files_that_will_be_written_are_refused(tmp_path: Path, name: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "folder").mkdir(parents=True)
    (run / "folder" / "file").touch()
    outside.mkdir()
    require_unlinked(run, ["log", "folder"])
    for path in (run / "log", run / "folder" / "part"):
        path.symlink_to(outside / "new")
        with pytest.raises(UnsafeFile, match="link"):
            require_unlinked(run, ["log", "folder"])
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(UnsafeFile, match="pipe"):
            require_unlinked(run, ["log", "folder"])
        path.unlink()
    (run / "other").symlink_to(outside)
    with pytest.raises(UnsafeFile, match="link"):
        require_unlinked(run, ["other"])
    assert not list(outside.iterdir())


REFUSED_JSON = {
    "not a number": ("[NaN]", "nan"),
    "infinite": ('{"mean": -Infinity}', "-inf"),
    "too large for a float": ("[1e400]", "not finite"),
    "too large for an integer": (f"[{10**400}]", "64 bits"),
    "one more than 64 bits": (f"[{2**64}]", "64 bits"),
    "deep": ("[" * 60 + "]" * 60, "nested"),
    "very deep": ("[" * 100_000, "nested"),
    "deep dicts": ('{"a":' * 100_000, "nested"),
    "cut short": ('{"a": [1,', "Expecting"),
    "no text": (b"\xff\xfe\xfa", "utf"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED_JSON.values(), ids=REFUSED_JSON)
def test_json_is_plain_and_finite(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"a": [1, -2.5, null, true, "ä"]}', encoding="utf-8-sig")
    assert read_json(tmp_path / "list.json") == {"a": [1, -2.5, None, True, "ä"]}


REFUSED_YAML = {
    "aliases": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "alias"),
    "itself": ("&a [*a]", "alias"),
    "merged": ("a: &a {x: 1}\nb:\n  <<: *a\n", "alias"),
    "not finite": ("a: .nan", "not finite"),
    "large": (f"a: {10**400}", "64 bits"),
    "an object": ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
    "a date": ("a: 2020-01-01", "date"),
    "a set": ("!!set {a, b}", "set"),
    "deep": ("[" * 60 + "]" * 60, "nested"),
    "very deep": ("[" * 5_000, "nested"),
    "a list as a key": ("? [a]\n: b", "key"),
    "not closed": ("a: [1", "expected"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED_YAML.values(), ids=REFUSED_YAML)
def test_yaml_is_plain_and_has_no_aliases(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_yaml(tmp_path / "a.yaml")


def test_yaml_as_hydra_writes_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("method:\n  name: maml\n  rates: [0.1, null]\nroot: ${oc.env:HOME}\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "method": {"name": "maml", "rates": [0.1, None]},
        "root": "${oc.env:HOME}",
    }


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def test_postscript_is_no_picture_even_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def run(*_: object, **__: object) -> None:
        raise AssertionError("the stranger's program ran")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / "photo.jpg").write_bytes(POSTSCRIPT)
    for raw in (POSTSCRIPT, tmp_path / "photo.jpg"):
        with pytest.raises(Image.UnidentifiedImageError), open_picture(raw) as picture:
            picture.load()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_too_many_pixels_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="9000 x 9000 pixels"), open_picture(png(9000, 9000)):
        pass
    with open_picture(png(90, 70)) as picture:
        assert picture.size == (90, 70)


def test_every_listed_format_is_one_that_pillow_decodes_by_itself() -> None:
    assert {"JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"} <= set(safe_files.formats())
    assert not {"EPS", "WMF", "PSD", "FITS", "GRIB", "BUFR", "HDF5", "MPEG"} & set(safe_files.FORMATS)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc")
    held = len(list(folder.iterdir()))
    attempts: list[Callable[[], object]] = [lambda: open_regular(tmp_path), lambda: open_regular(tmp_path / "no")]
    for attempt in attempts:
        with pytest.raises(OSError):
            attempt()
    assert len(list(folder.iterdir())) == held
