from __future__ import annotations

import json
import logging
import os
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from metarun.data.datasets import folder
from metarun.data.decoding import Manifest
from metarun.data.formats.detect import DataPaths
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.image_set import ImageSet
from metarun.data.task_sampler import TaskShape
from metarun.errors import UserError

TRAIN = ["01", "03", "04", "07", "08", "09"]
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
    return folder.load(DataPaths(root, root.parent / "cache", False), str(root), 8, grey, seed)


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
    assert "2 files or folders are left out, as they are no pictures or stand in no class, first" in caplog.text
    (manifest,) = (tmp_path / "cache").glob("*.json")
    assert {Path(name).name for name, _ in json.loads(manifest.read_text())["left_out"]} == {"notes.txt", "b.jpg"}


def test_classes_with_too_few_pictures_are_left_out_with_a_count(tmp_path: Path, caplog) -> None:
    root = tmp_path / "root"
    for part, names in (("train", CLASSES[:6]), ("val", CLASSES[6:9]), ("test", CLASSES[9:])):
        fill(root / part, names)
    for name in CLASSES[:2]:
        (root / "train" / name / "a.png").unlink()
    source = ImageTaskSampler(load(root), torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        source.check("train", TaskShape(3, 1, 3))
    assert "2 of 6 classes of the train split are left out: fewer than 4 images (shots + queries)" in caplog.text
    drawn = source.draw(0, "train", 0, 50, TaskShape(3, 1, 3)).query_data
    assert set((drawn[:, :, 0, 0, 0] * 17).round().int().unique().tolist()) == {2, 3, 4, 5}
    with pytest.raises(UserError, match=r"ways=5: the train split \(root-as-given-6/3/6\) has 4 classes"):
        source.check("train", TaskShape(5, 1, 3))


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
        found = folder.load(DataPaths(tmp_path, tmp_path / "cache", False), "pictures", 8, False, 0)
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
        (
            lambda root: root.write_text("date,class\n"),
            r"must name a column of pictures \(path, file, .*\) and one of classes \(label, class, .*\), found "
            r"\['date', 'class'\]",
        ),
        (lambda root: root.write_text("file,image,label\n"), r"columns 'file' and 'image' may both be the path"),
        (
            lambda root: root.write_text("path;class;Category\n"),
            r"columns 'class' and 'Category' may both be the label",
        ),
        (lambda root: root.write_text("path,label\n"), r"lists no pictures"),
        (lambda root: root.write_text("path,label\na.png,\n"), r"line 2 lacks a value"),
        (lambda root: root.write_text("path,label\nno.png,a\n"), r"lists no\.png, which is not there"),
        (lambda root: root.write_bytes(b"path,label\n\xff\xfe,a\n"), r"not a CSV file in UTF-8"),
        (
            lambda root: [save(root.parent / "a.png", 0), root.write_text("path,label,split\na.png,a,dev\n")],
            r"its splits must be train, val and test, or train and test, found 'dev'; rename",
        ),
    ],
)
def test_mistakes_are_told(tmp_path: Path, build, message: str) -> None:
    build(tmp_path / "root")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "root")


def manifest(count: dict[str, int], splits: dict[str, list[str]] | None = None) -> Manifest:
    none = [[0.0]] * len(count)
    return Manifest("", [], list(count), [], list(count.values()), none, none, splits)


def test_the_division_is_the_same_everywhere() -> None:
    parts, how = folder.resolve_splits(manifest({f"{i:02}": 7 for i in range(10)}), 3)
    assert (parts, how) == ({"train": TRAIN, "val": ["00", "02"], "test": ["05", "06"]}, "seed3")
    assert [len(part) for part in folder.resolve_splits(manifest(dict.fromkeys("abc", 1)), 0)[0].values()] == [1, 1, 1]


def test_classes_are_dropped_before_they_are_divided(tmp_path: Path, caplog) -> None:
    """Half of the classes are too small: each split has its share of the others, and a class never changes split."""
    root = tmp_path / "root"
    for i in range(20):
        fill(root, [f"class {i}"], each=2 if i % 2 else 6)
    found = load(root)
    source = ImageTaskSampler(found, torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        for split, classes in (("train", 6), ("val", 2), ("test", 2)):
            caplog.clear()
            source.check(split, TaskShape(2, 1, 4))
            assert f"{split} split: {classes} classes, {6 * classes} pictures" in caplog.messages
            left_out = f"{classes} of {2 * classes} classes of the {split} split are left out: fewer than 5 images"
            assert left_out in caplog.text and "(2)" in caplog.text
    assert found.class_split == "root-seed0-12/4/4"
    with pytest.raises(UserError, match=r"ways=3: the val split .* has 2 classes with enough pictures, 2 have too few"):
        source.check("val", TaskShape(3, 1, 4))


@pytest.mark.parametrize("sizes", [[9, 8, 7, 6, 5, 4, 3, 2], [5] * 11 + [4] * 9, [1, 50, 3, 20, 20, 20, 7]])
def test_every_number_of_shots_leaves_each_split_its_share(sizes: list[int]) -> None:
    count = {str(i): size for i, size in enumerate(sizes)}
    parts, _ = folder.resolve_splits(manifest(count), 1)
    for least in sizes:
        left = {split: sum(count[name] >= least for name in names) for split, names in parts.items()}
        total = sum(left.values())
        assert min(left.values()) >= min(total // 5 + (total % 5 > 2), total // 3), (least, left)


# --- what people have --------------------------------------------------------------------------------------


def in_parts(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        fill(root / name, CLASSES[3 * i : 3 * i + 3], each=2)
    return root


@pytest.mark.parametrize(
    "names",
    [("Train", "Val", "Test"), ("TRAINING", "valid", "testing"), ("train", "Dev", "test"), ("base", "val", "novel")],
)
@pytest.mark.parametrize("as_csv", [False, True])
def test_split_names_in_any_spelling(tmp_path: Path, names, as_csv: bool) -> None:
    place = in_parts(tmp_path / "root", *names)
    if as_csv:
        files = [file.relative_to(place) for file in sorted(place.rglob("*.*"))]
        rows = [f"{file};{file.parts[1]};{file.parts[0]}" for file in files]
        place = place / "list.csv"
        place.write_text("\n".join(["File Name;Class;Set", *rows]))
    parts = {"train": set(CLASSES[:3]), "val": set(CLASSES[3:6]), "test": set(CLASSES[6:9])}
    assert classes(load(place)) == parts


@pytest.mark.parametrize("as_csv", [False, True])
def test_train_and_test_without_val(tmp_path: Path, as_csv: bool, caplog) -> None:
    place = tmp_path / "root"
    fill(place / "Train", CLASSES[:8], each=2)
    fill(place / "Test", CLASSES[8:11], each=2)
    if as_csv:
        rows = [f"{f.relative_to(place)}\t{f.parent.name}\t{f.parent.parent.name}" for f in place.rglob("*.*")]
        place = place / "list.tsv"
        place.write_text("\n".join(["Path\tLabel\tSplit", *rows]))
    found = load(place)
    parts = classes(found)
    assert parts["test"] == set(CLASSES[8:11]) and parts["train"] | parts["val"] == set(CLASSES[:8])
    assert len(parts["val"]) == 2 and not parts["train"] & parts["val"]
    assert "holds no val part; every fourth training class validates" in caplog.text
    assert found.class_split == f"{place.stem}-as-given-val-seed0-6/2/3"


def test_groups_of_classes(tmp_path: Path, caplog) -> None:
    for group, names in (("animals", CLASSES[:3]), ("food", CLASSES[:2])):
        fill(tmp_path / "root" / group, names)
    assert set(load(tmp_path / "root").names) == {f"animals/{n}" for n in CLASSES[:3]} | {
        f"food/{n}" for n in CLASSES[:2]
    }
    assert "holds folders of class folders; its 5 classes are named by both, as 'animals/apple pie'" in caplog.text


def test_groups_of_classes_in_split_folders(tmp_path: Path) -> None:
    for i, part in enumerate(("train", "val", "test")):
        fill(tmp_path / "root" / part / "animals", CLASSES[i : i + 1])
    assert classes(load(tmp_path / "root"))["val"] == {f"animals/{CLASSES[1]}"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert sorted(load(fill(tmp_path / "root", ["train", "car", "plane"])).names) == ["car", "plane", "train"]


def test_what_lies_beside_splits_or_classes_is_told(tmp_path: Path, caplog) -> None:
    root = in_parts(tmp_path / "root", "train", "val", "test", "unlabelled")
    save(root / "train" / "loose.png", 1)
    assert len(load(root).names) == 9
    assert "2 files or folders are left out" in caplog.text and "loose.png (lies in no class folder)" in caplog.text
    assert "unlabelled (lies beside the folders of the splits)" in caplog.text


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda root: in_parts(root, "train", "Train", "val", "test"),
            r"'Train' and 'train' may both be its train part",
        ),
        (lambda root: in_parts(root, "train", "val", "dev", "test"), r"'dev' and 'val' may both be its val part"),
        (lambda root: in_parts(root, "Train", "Val"), r"or train and test, found 'Train', 'Val'"),
        (lambda root: in_parts(root, "train"), r"found 'train'; .*give the folder of one split"),
        (
            lambda root: in_parts(root, "train", "test", "more"),
            r"folders of splits and others \('train', 'test', 'more'\)",
        ),
        (
            lambda root: fill(root, ["train", "test"], each=2),
            r"folder 'train' holds pictures, where each class wants a folder",
        ),
        (
            lambda root: [in_parts(root, "train"), save(root / "test" / "1.png", 1)],
            r"folder 'test' holds pictures, where each class",
        ),
        (
            lambda root: [fill(root, ["cat"]), fill(root / "dogs", ["poodle"])],
            r"folder 'cat' holds pictures, 'dogs' only folders of pictures",
        ),
        (
            lambda root: [save(root / "1.png", 1), (root / "labels.csv").write_text("")],
            r"or give its list of pictures, dataset\.root=.*root/labels\.csv",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_the_names(tmp_path: Path, build, message: str) -> None:
    build(tmp_path / "root")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "root")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "path,label",
        "Path,Label",
        "filename,label",
        "file;class",
        "image\tcategory",
        "sep=;\nImage Name;Class Name",
        "id,label,path",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_files_as_programs_write_them(tmp_path: Path, header: str, encoding: str) -> None:
    fill(tmp_path / "root", CLASSES[:4], each=2)
    between = next(mark for mark in "\t;," if mark in header)
    rows = []
    for name in CLASSES[:4]:
        for file in ("root\\" + name + "\\a.png", f"root/{name}/b.jpg"):
            rows.append(between.join([file, name] if "id" not in header else ["7", name, file]))
    (tmp_path / "list.csv").write_text("\r\n".join([header, *rows, "", ""]), encoding=encoding)
    assert shades(load(tmp_path / "list.csv")) == {name: i for i, name in enumerate(CLASSES[:4])}


JUNK = ["._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir/a.png/SYNOFILE_THUMB_M.jpg", ".@__thumb/a.png"]


def test_what_systems_leave_among_pictures_is_passed_over(tmp_path: Path, caplog) -> None:
    root = fill(tmp_path / "root", CLASSES[:4])
    top = ["#recycle/x", "$RECYCLE.BIN/x", "System Volume Information/x", "__MACOSX/x", ".stfolder", ".synology/x"]
    for place in (root, root / CLASSES[0]):
        for name in (*JUNK, *(f"{inner}/old.png" for inner in top)):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"junk")
    found = load(root)
    assert sorted(found.names) == sorted(CLASSES[:4]) and (found.count == 4).all()
    assert "left out" not in caplog.text


def test_two_folders_of_one_name_in_two_unicode_forms_are_one_class(tmp_path: Path, caplog) -> None:
    root = fill(tmp_path / "root", ["b", "c"])
    save(root / unicodedata.normalize("NFC", "é") / "1.png", 40)
    save(root / unicodedata.normalize("NFD", "é") / "2.png", 50)
    found = load(root)
    assert found.names == ("b", "c", "é") and found.count.tolist() == [4, 4, 2]
    assert "two folders 'é' differ in their Unicode form only; they are one class" in unicodedata.normalize(
        "NFC", caplog.text
    )


# --- a picture twice ---------------------------------------------------------------------------------------


def listed(folder: Path, *rows: str) -> Path:
    fill(folder, CLASSES[:4], each=2)
    every = [
        f"{name}/{file},{name},{part}"
        for name, part in zip(CLASSES, SPREAD, strict=False)
        for file in ("a.png", "b.jpg")
    ]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *every, *rows]))
    return folder / "list.csv"


SPREAD = ("train", "train", "val", "test")


def test_a_picture_that_is_listed_twice_is_taken_once_and_told(tmp_path: Path, caplog) -> None:
    path = listed(tmp_path, "apple pie/a.png,apple pie,train", "./Äpfel/../apple pie/b.jpg,apple pie,train")
    assert load(path).count.tolist() == [2, 2, 2, 2]
    assert "2 pictures stand in their class twice, first" in caplog.text


@pytest.mark.parametrize(
    "row, what",
    [
        ("apple pie/a.png,Äpfel,train", r"a\.png stands in the classes 'apple pie' and 'Äpfel'"),
        ("apple pie/a.png,class 0,test", r"a\.png stands in the classes 'apple pie' and 'class 0'"),
        ("./apple pie/../apple pie/a.png,class 0,test", r"are one file, which stands in the classes"),
        ("hard.png,class 0,test", r"a\.png and .*hard\.png are one file"),
        ("soft.png,class 0,test", r"a\.png and .*soft\.png are one file"),
        ("apple pie/b.jpg,apple pie,test", r"class 'apple pie' stands in train and in test"),
    ],
)
def test_a_picture_in_two_classes_or_splits_is_refused(tmp_path: Path, row: str, what: str) -> None:
    path = listed(tmp_path, row)
    (tmp_path / "hard.png").hardlink_to(tmp_path / "apple pie" / "a.png")
    (tmp_path / "soft.png").symlink_to(tmp_path / "apple pie" / "a.png")
    with pytest.raises(UserError, match=what):
        load(path)


def test_a_class_folder_under_two_names_is_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", ["a", "b", "c"])
    (root / "d").symlink_to(root / "b")
    with pytest.raises(
        UserError, match=r"b/a\.png and .*d/a\.png are one file, which stands in the classes 'b' and 'd'"
    ):
        load(root)


def test_equal_pictures_are_told(tmp_path: Path, caplog) -> None:
    for name, shade in (("a/1", 10), ("a/2", 10), ("b/1", 10), ("b/2", 20), ("c/1", 30)):
        save(tmp_path / "root" / f"{name}.png", shade)
    for _ in range(2):  # told at every start
        caplog.clear()
        load(tmp_path / "root")
        assert "1 picture is equal to one of the same class: both may stand in one task, first" in caplog.text
        assert "1 picture is equal to one of another class, first" in caplog.text


# --- what cannot be read -----------------------------------------------------------------------------------


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path, caplog, monkeypatch) -> None:
    root = fill(tmp_path / "root", CLASSES[:4])
    first = root / CLASSES[0]
    (first / "broken.png").symlink_to(root / "nowhere.png")
    (first / "circle.png").symlink_to(first / "circle.png")
    (root / "broken class").symlink_to(root / "nowhere")
    (first / "folder.png").mkdir()
    (first / "empty.png").write_bytes(b"")
    (first / "cut.png").write_bytes((first / "a.png").read_bytes()[:40])
    os.mkfifo(first / "pipe.png")
    (first / "closed").mkdir()
    scandir = os.scandir

    def refuse(folder):  # as root may read everything
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = load(root)
    assert sorted(found.names) == sorted(CLASSES[:4]) and (found.count == 4).all()
    assert "6 files or folders are left out" in caplog.text
    (path,) = (tmp_path / "cache").glob("*.json")
    why = {Path(name).name: reason for name, reason in json.loads(path.read_text())["left_out"]}
    assert why["broken.png"] == "a link to what is not there" and "pipe" in why["pipe.png"]
    assert why["closed"] == "the folder cannot be read: Permission denied"
    assert set(why) == {"broken.png", "circle.png", "empty.png", "cut.png", "pipe.png", "closed"}
    first.joinpath("broken.png").unlink()
    caplog.clear()
    load(root)
    assert "5 files or folders are left out" in caplog.text
