"""Folders and lists of published data sets, as people's systems change them."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path

import pytest

from metarun.data.cache import file_fingerprints
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.image_folders import csv_lists, json_lists, listed_folders, split_folders
from metarun.errors import UserError
from tests.helpers.image_forms import encoded, put

CLASSES = {"train": ("a", "b"), "val": ("c",), "test": ("d",)}


def fill(folder: Path, parts: dict[str, str] | None = None) -> Path:
    """Two pictures of each class, below its split's folder where the parts have one."""
    for number, (split, name) in enumerate((s, name) for s, names in CLASSES.items() for name in names):
        for i in range(2):
            put(folder / (parts[split] if parts else "images") / name / f"{i}.png", encoded(number, i, "PNG"))
    return folder


def check(form: FoundFormat | None, pictures: int = 8) -> None:
    assert form is not None
    with ExitStack() as stack:
        found = form.read(stack)
        assert found.splits == {split: list(names) for split, names in CLASSES.items()}
        assert len(list(found.images)) == pictures


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    fill(tmp_path)
    for part, names in CLASSES.items():
        rows = [f"{i}.png,{name}" for name in names for i in range(2)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["filename,label", *rows]), encoding=encoding)
        files = [f"{name}/{i}.png" for name in names for i in range(2)]
        labels = [i for i in range(len(names)) for _ in range(2)]
        content = {"label_names": names, "image_names": [f"images/{file}" for file in files], "image_labels": labels}
        (tmp_path / f"{part}.json").write_text(json.dumps(content), encoding=encoding)
        (tmp_path / f"{part}.txt").write_text("\n".join(names), encoding=encoding)
    check(csv_lists(tmp_path))
    check(json_lists(tmp_path))
    check(listed_folders(tmp_path, "images", "."))


def test_split_folders_in_any_case(tmp_path: Path) -> None:
    check(split_folders(fill(tmp_path, {"train": "Train", "val": "VAL", "test": "Testing"})))
    put(tmp_path / "dev" / "e" / "1.png", encoded(0, 0, "PNG"))
    with pytest.raises(UserError, match=r"'VAL' and 'dev' may both be its val part; leave one"):
        split_folders(tmp_path)


def test_a_list_that_names_a_picture_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path)
    for part, names in CLASSES.items():
        rows = [f"{i}.png,{name}" for name in names for i in (0, 1, 0)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["filename,label", *rows]))
    with caplog.at_level(logging.WARNING):
        check(csv_lists(tmp_path))
    assert "4 pictures stand in their class twice" in caplog.text


def test_a_broken_link_among_a_published_sets_pictures_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {split: split for split in CLASSES})
    (tmp_path / "val" / "c" / "gone.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"val/c/gone\.png: cannot be read \(No such file or directory\); put it back"):
        split_folders(tmp_path)


def test_a_file_that_goes_while_its_set_is_looked_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: cannot be read \(No such file or directory\)"):
        list(file_fingerprints([tmp_path / "gone.png"]))
