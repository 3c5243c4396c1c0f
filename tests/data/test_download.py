from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from urllib.error import URLError

import pytest

from metarun.data.download import fetch
from metarun.errors import UserError

ADDRESS = "https://official/archive.tar.gz"
WHOLE = b"the archive" * 100
MD5 = hashlib.md5(WHOLE, usedforsecurity=False).hexdigest()


def server(monkeypatch: pytest.MonkeyPatch, answer: bytes | BaseException | None) -> None:
    """torchvision's downloader, as if the address gave this answer; None: there is no torchvision."""
    utils = types.ModuleType("torchvision.datasets.utils")

    def download_url(url: str, root: str, filename: str) -> None:
        assert url == ADDRESS
        Path(root, filename).write_bytes(answer if isinstance(answer, bytes) else WHOLE[:50])
        if isinstance(answer, BaseException):
            raise answer

    if answer is not None:
        utils.__dict__["download_url"] = download_url
    monkeypatch.setitem(sys.modules, "torchvision.datasets.utils", utils)


def left(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_archive_comes_under_its_name(tmp_path: Path, monkeypatch) -> None:
    server(monkeypatch, WHOLE)
    fetch(ADDRESS, MD5, tmp_path / "new")
    assert left(tmp_path / "new") == {"archive.tar.gz": WHOLE}


def test_a_wrong_checksum_is_told_and_the_file_kept_aside(tmp_path: Path, monkeypatch) -> None:
    server(monkeypatch, b"another archive")
    found = hashlib.md5(b"another archive", usedforsecurity=False).hexdigest()
    with pytest.raises(
        UserError, match=rf"archive.tar.gz has the checksum {found}, not the official {MD5}: it is kept"
    ):
        fetch(ADDRESS, MD5, tmp_path)
    assert left(tmp_path) == {"archive.tar.gz.refused": b"another archive"}


def test_a_web_page_is_named_as_such(tmp_path: Path, monkeypatch) -> None:
    server(monkeypatch, b"<!DOCTYPE html><title>Not found</title>")
    with pytest.raises(UserError, match=r"archive\.tar\.gz\.refused: a web page, not data"):
        fetch(ADDRESS, MD5, tmp_path)


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("one\ntwo"), KeyboardInterrupt()])
def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch, error: BaseException) -> None:
    server(monkeypatch, error)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            fetch(ADDRESS, MD5, tmp_path)
    else:
        says = rf"^download=true: archive.tar.gz could not be fetched \(.*(no network|one two).*put .* in {tmp_path}$"
        with pytest.raises(UserError, match=says):
            fetch(ADDRESS, MD5, tmp_path)
    assert left(tmp_path) == {}


def test_without_torchvision_it_is_told(tmp_path: Path, monkeypatch) -> None:
    server(monkeypatch, None)
    with pytest.raises(UserError, match=r"could not be fetched \(.*import"):
        fetch(ADDRESS, MD5, tmp_path)


def test_the_real_torchvision_is_asked_rightly(tmp_path: Path, monkeypatch) -> None:
    real = pytest.importorskip("torchvision.datasets.utils")
    asked = []

    def no_network(url: str, filename: str, *_: object) -> None:
        asked.append(url)
        raise URLError("no network")

    monkeypatch.setattr(real, "_urlretrieve", no_network)
    monkeypatch.setattr(real, "_get_redirect_url", lambda url, **_: url)
    with pytest.raises(UserError, match="no network"):
        fetch(ADDRESS, MD5, tmp_path)
    assert asked[0] == ADDRESS
