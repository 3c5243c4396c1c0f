from __future__ import annotations

import json
import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.data import folder
from metarun.data.images import ImageSet
from metarun.data.on_disk import Places
from metarun.data.sampler import ImageSource
from metarun.data.source import Shape
from metarun.errors import UserError

CLASSES = ["apple pie", "Äpfel", "ünïcode 猫", *(f"class {i}" for i in range(12))]


def save(path: Path, shade: int, mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).convert(mode).save(path)


def fill(root: Path, classes=CLASSES, each: int = 4) -> Path:
    """Every class in a shade of its own, its pictures of several kinds and sizes."""
    kinds = [
        ("a.png", "RGBA"),
        ("b.jpg", "L"),
        ("c.webp", "RGB"),
        ("deep/d.bmp", "P"),
        ("e.gif", "L"),
        ("f.tif", "CMYK"),
    ]
    for i, name in enumerate(classes):
        for (file, mode), size in zip(kinds[:each], [(5, 5), (9, 7), (20, 31), (8, 3), (6, 6), (7, 7)], strict=False):
            save(root / name / file, 15 * i, mode, size)
    return root


def load(root: Path, seed: int = 0, grey: bool = False) -> ImageSet:
    return folder.load(Places(root, root.parent / "cache", False), str(root), 8, grey, seed)


def shades(found: ImageSet) -> dict[str, int]:
    return {
        n: round(found.images[f : f + c].mean() / 15)
        for n, f, c in zip(found.names, found.first, found.count, strict=True)
    }


def classes(found: ImageSet) -> dict[str, set[str]]:
    return {part: {found.names[i] for i in numbers} for part, numbers in found.splits.items()}


@pytest.mark.parametrize("grey", [False, True])
def test_class_folders_are_divided_by_the_seed(tmp_path: Path, grey: bool) -> None:
    found = load(fill(tmp_path / "my pictures"), grey=grey)
    assert found.images.shape == (60, 1 if grey else 3, 8, 8) and (found.count == 4).all()
    assert shades(found) == {name: i for i, name in enumerate(CLASSES)}
    assert found.class_split == "my pictures-seed0-9/3/3"
    parts = classes(found)
    assert sorted(name for part in parts.values() for name in part) == sorted(CLASSES)
    assert classes(load(tmp_path / "my pictures", grey=grey)) == parts
    assert classes(load(tmp_path / "my pictures", seed=1, grey=grey)) != parts


def test_folders_for_each_split_are_taken_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for part, names in (("train", CLASSES[:6]), ("validation", CLASSES[6:9]), ("test", CLASSES[9:])):
        fill(root / part, names)
    found = load(root)
    assert classes(found) == {"train": set(CLASSES[:6]), "val": set(CLASSES[6:9]), "test": set(CLASSES[9:])}
    assert found.class_split == "root-as-given-6/3/6"


@pytest.mark.parametrize("with_splits", [False, True])
def test_a_csv_names_pictures_anywhere(tmp_path: Path, with_splits: bool) -> None:
    fill(tmp_path / "pictures")
    lines = ["path,label,split" if with_splits else "path,label"]
    for i, name in enumerate(CLASSES):
        for file in ("a.png", "b.jpg"):
            place = f"pictures/{name}/{file}" if i % 2 else tmp_path / "pictures" / name / file
            part = f",{'train' if i < 9 else 'val' if i < 12 else 'test'}" if with_splits else ""
            lines.append(f'"{place}",{name}{part}')
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    found = load(tmp_path / "list.csv")
    assert shades(found) == {name: i for i, name in enumerate(CLASSES)} and (found.count == 2).all()
    assert found.class_split == ("list-as-given-9/3/3" if with_splits else "list-seed0-9/3/3")


def test_what_is_no_picture_is_left_out_and_listed(tmp_path: Path, caplog) -> None:
    root = fill(tmp_path / "root")
    (root / CLASSES[0] / "notes.txt").write_text("bought in May")
    whole = (root / CLASSES[1] / "b.jpg").read_bytes()
    (root / CLASSES[1] / "b.jpg").write_bytes(whole[: len(whole) // 2])
    for hidden in (".DS_Store", ".hidden/a.png", f"{CLASSES[2]}/.DS_Store", f"{CLASSES[2]}/Thumbs.db"):
        path = root / hidden
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (root / "empty").mkdir()
    with caplog.at_level(logging.WARNING):
        found = load(root)
    assert sorted(found.names) == sorted(CLASSES)
    assert [found.count[found.names.index(name)] for name in CLASSES[:3]] == [4, 3, 4]
    assert "2 files are no pictures and left out, first" in caplog.text
    (manifest,) = (tmp_path / "cache").glob("*.json")
    assert {Path(name).name for name, _ in json.loads(manifest.read_text())["left_out"]} == {"notes.txt", "b.jpg"}


def test_classes_with_too_few_pictures_are_left_out_with_a_count(tmp_path: Path, caplog) -> None:
    root = tmp_path / "root"
    for part, names in (("train", CLASSES[:6]), ("val", CLASSES[6:9]), ("test", CLASSES[9:])):
        fill(root / part, names)
    for name in CLASSES[:2]:
        (root / "train" / name / "a.png").unlink()
    source = ImageSource(load(root), torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        source.check("train", Shape(3, 1, 3))
    assert "2 of 6 classes of the train split are left out: fewer than 4 images (shots + queries)" in caplog.text
    drawn = source.draw(0, "train", 0, 50, Shape(3, 1, 3)).query_data
    assert set((drawn[:, :, 0, 0, 0] * 17).round().int().unique().tolist()) == {2, 3, 4, 5}
    with pytest.raises(UserError, match=r"ways=5: the train split \(root-as-given-6/3/6\) has 4 classes"):
        source.check("train", Shape(5, 1, 3))


def test_names_that_differ_in_case_only_are_two_classes_and_told(tmp_path: Path, caplog) -> None:
    root = fill(tmp_path / "root", ["Cat", "cat", "dog"])
    assert sorted(load(root).names) == ["Cat", "cat", "dog"]
    assert "classes 'Cat' and 'cat' differ in case only; they are taken as two" in caplog.text


def test_links_are_followed_to_classes_but_not_in_circles(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", ["a", "b"])
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "x.png", 60)
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    found = load(root)
    assert found.names == ("a", "b", "c") and found.count.tolist() == [4, 4, 1]


def test_accents_are_spelt_in_one_way(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", [unicodedata.normalize("NFD", "é"), "b", "c"])
    assert "é" in load(root).names


def test_changed_pictures_are_prepared_anew(tmp_path: Path) -> None:
    root = fill(tmp_path / "root")
    before = load(root)
    save(root / CLASSES[3] / "new.png", 45)
    after = load(root)
    assert after.count[after.names.index(CLASSES[3])] == 5
    assert len(before.images) + 1 == len(after.images)


def test_the_same_relative_root_in_two_projects_is_prepared_for_each(tmp_path: Path, monkeypatch) -> None:
    shade = {"one": 40, "two": 200}
    for project in shade:
        for name in ("a", "b", "c"):
            file = tmp_path / project / "pictures" / name / "x.bmp"
            save(file, shade[project])
            os.utime(file, ns=(10**18, 10**18))
    for project in shade:
        monkeypatch.chdir(tmp_path / project)
        found = folder.load(Places(tmp_path, tmp_path / "cache", False), "pictures", 8, False, 0)
        assert found.images.mean() == shade[project]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: None, r"dataset\.root=.*root: no such folder or file"),
        (lambda root: root.mkdir(), r"dataset\.root=.*root: holds no class folders"),
        (lambda root: save(root / "a.png", 1), r"dataset\.root=.*root: holds no class folders"),
        (lambda root: fill(root, ["a", "b"]), r"2 classes cannot train, validate and test.*mode=predict"),
        (
            lambda root: [fill(root / part, ["same", part]) for part in ("train", "val", "test")],
            r"class 'same' stands in train and in val; few-shot splits share no class",
        ),
        (
            lambda root: [fill(root / "train", ["a"]), fill(root / "val", ["b"]), (root / "test").mkdir()],
            r"its test part holds no class folders",
        ),
        (lambda root: root.write_text("file,class\n"), r"must name the columns label,path, found \['file', 'class'\]"),
        (lambda root: root.write_text("path,label\n"), r"lists no pictures"),
        (lambda root: root.write_text("path,label\na.png,\n"), r"line 2 lacks a value"),
        (lambda root: root.write_text("path,label\nno.png,a\n"), r"lists no\.png, which is not there"),
        (lambda root: root.write_bytes(b"path,label\n\xff\xfe,a\n"), r"not a CSV file in UTF-8"),
        (
            lambda root: [save(root.parent / "a.png", 0), root.write_text("path,label,split\na.png,a,dev\n")],
            r"its splits must be train, val and test, found 'dev'",
        ),
    ],
)
def test_mistakes_are_told(tmp_path: Path, build, message: str) -> None:
    build(tmp_path / "root")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "root")


def test_the_division_is_the_same_everywhere() -> None:
    parts = folder.shuffled([f"{i:02}" for i in range(10)], 3)
    assert parts == {"train": ["00", "01", "03", "04", "06", "09"], "val": ["02", "05"], "test": ["07", "08"]}
    assert np.sum([len(part) for part in folder.shuffled(["a", "b", "c"], 0).values()]) == 3
