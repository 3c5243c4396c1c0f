"""Omniglot in miniature: every character of the real set, two tiny drawings each, in every form people have it."""

from __future__ import annotations

import io
import logging
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from metarun.data import cache
from metarun.data.datasets import omniglot
from metarun.data.datasets.omniglot_splits import BACKGROUND, EVALUATION, SPLITS, characters
from metarun.data.formats import omniglot as omniglot_files
from metarun.data.formats.detect import DataPaths
from metarun.data.formats.omniglot import HALF_NAMES
from metarun.data.image_set import ImageSet
from metarun.errors import UserError

HALVES: dict[str, dict[str, int]] = {HALF_NAMES[0]: BACKGROUND, HALF_NAMES[1]: EVALUATION}
MARKED = "Greek/character07"  # its first drawing has ink at the left, all others at the top


def png(top: int, left: int) -> bytes:
    """8x8, 1 bit, black ink on white, as the real files are: ink in the first `top` rows and `left` columns."""
    pixels = np.ones((8, 8), dtype=bool)
    pixels[:top] = False
    pixels[:, :left] = False
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PLAIN, MARK = png(4, 0), png(0, 4)


def members(half: str) -> dict[str, bytes]:
    """What the official archive of one half holds: path -> content."""
    files = {}
    for name in characters(HALVES[half]):
        files[f"{half}/{name}/0001_01.png"] = MARK if name == MARKED else PLAIN
        files[f"{half}/{name}/0001_02.png"] = PLAIN
    return files


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return file.getvalue()


@pytest.fixture(scope="session")
def archives() -> dict[str, bytes]:
    return {half: archive(members(half)) for half in HALF_NAMES}


@pytest.fixture
def data_dir(tmp_path: Path, archives: dict[str, bytes]) -> Path:
    """Both archives where torchvision puts them."""
    return put(tmp_path / "data", {f"omniglot-py/{half}.zip": content for half, content in archives.items()})


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def load(data_dir: Path, split: str = "vinyals", rotations: bool = False, download: bool = False) -> ImageSet:
    return omniglot.load(DataPaths(data_dir, data_dir.parent / "cache", download), split, rotations)


def refused(data_dir: Path, *patterns: str, download: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        load(data_dir, download=download)
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        assert re.search(pattern, message), message
    return message


def check_whole(image_set: ImageSet) -> None:
    assert image_set.images.shape == (3246, 1, 28, 28) and image_set.images.dtype == np.uint8
    assert image_set.names == tuple(sorted(characters(BACKGROUND | EVALUATION)))
    assert (image_set.count == 2).all() and (image_set.first == 2 * np.arange(1623)).all()
    marked = image_set.images[:, 0, 20, 3] > 127  # low at the left: ink only in MARKED's first drawing
    assert list(np.flatnonzero(marked)) == [image_set.first[image_set.names.index(MARKED)]]
    plain = image_set.images[0, 0]
    assert (plain[:11] > 230).all() and (plain[17:] < 25).all()


# --- forms on disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["omniglot-py", ".", "omniglot"])
def test_archives_are_read_where_people_put_them(tmp_path: Path, archives: dict[str, bytes], place: str) -> None:
    data_dir = put(tmp_path / "data", {f"{place}/{half}.zip": content for half, content in archives.items()})
    before = sorted(data_dir.rglob("*"))
    check_whole(load(data_dir))
    assert sorted(data_dir.rglob("*")) == before  # nothing was unpacked


@pytest.mark.parametrize("place", ["omniglot-py", ".", "omniglot"])
@pytest.mark.parametrize("tops", [True, False], ids=["two folders", "all alphabets in one folder"])
def test_unpacked_folders_are_read_where_people_put_them(tmp_path: Path, place: str, tops: bool) -> None:
    files = {name: content for half in HALF_NAMES for name, content in members(half).items()}
    check_whole(
        load(put(tmp_path / "data", {f"{place}/{n if tops else n.split('/', 1)[1]}": c for n, c in files.items()}))
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["omniglot", "."])
def test_torchmetas_file_is_read(tmp_path: Path, place: str) -> None:
    """Its ink is white; its lists of labels are beside it, its archives and folders may be gone."""
    folder = tmp_path / "data" / place
    folder.mkdir(parents=True)
    with h5py.File(folder / "data.hdf5", "w") as file:
        for half in HALF_NAMES:
            drawings = list(members(half).items())
            for first, second in zip(drawings[::2], drawings[1::2], strict=True):
                arrays = [255 - np.asarray(Image.open(io.BytesIO(png)).convert("L")) for _, png in (first, second)]
                file.create_dataset(first[0].rpartition("/")[0], data=np.stack(arrays))
    check_whole(load(tmp_path / "data"))


def test_halves_may_lie_in_different_forms(tmp_path: Path, archives: dict[str, bytes]) -> None:
    check_whole(
        load(put(tmp_path / "data", {f"{HALF_NAMES[0]}.zip": archives[HALF_NAMES[0]]} | members(HALF_NAMES[1])))
    )


def test_what_is_not_a_drawing_is_passed_over(tmp_path: Path, archives: dict[str, bytes]) -> None:
    top, bad = HALF_NAMES[0], b"not an image"
    stray = [f"{top}/.DS_Store", f"__MACOSX/{top}/Greek/character01/._0001_01.png", f"{top}/Greek/notes.png"]
    stray += [f"{top}/Greek/character01/.hidden.png", f"{top}/Greek/character01/strokes.txt", "../../evil.png"]
    content = archive({**members(top), **dict.fromkeys(stray, bad)})
    check_whole(load(put(tmp_path / "zip", {f"{top}.zip": content, f"{HALF_NAMES[1]}.zip": archives[HALF_NAMES[1]]})))
    files = {**members(top), **members(HALF_NAMES[1]), **dict.fromkeys(stray[:-1], bad)}
    check_whole(load(put(tmp_path / "tree", files)))


def test_characters_that_omniglot_does_not_have_are_left_out_with_a_warning(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {**members(HALF_NAMES[0]), f"{HALF_NAMES[0]}/Klingon/character01/1.png": PLAIN}
    put(data_dir, {f"omniglot-py/{HALF_NAMES[0]}.zip": archive(files)})
    with caplog.at_level(logging.WARNING):
        check_whole(load(data_dir))
    assert "Klingon/character01" in caplog.text


def test_a_class_may_have_any_number_of_drawings(tmp_path: Path) -> None:
    files = {name: content for half in HALF_NAMES for name, content in members(half).items()}
    files |= {f"{HALF_NAMES[0]}/Greek/character02/{n}.png": PLAIN for n in "abc"}
    del files[f"{HALF_NAMES[0]}/Greek/character03/0001_01.png"]
    image_set = load(put(tmp_path / "data", files))
    greek = [image_set.names.index(f"Greek/character{n:02}") for n in (1, 2, 3, 4)]
    assert list(image_set.count[greek]) == [2, 5, 1, 2]
    assert (image_set.first == np.cumsum(image_set.count) - image_set.count).all()


# --- splits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split, sizes",
    [("vinyals", (1028, 172, 423)), ("maml", (1100, 100, 423)), ("lake", (864, 100, 659))],
)
def test_every_character_stands_in_one_split(data_dir: Path, split: str, sizes: tuple[int, ...]) -> None:
    image_set = load(data_dir, split, rotations=True)
    assert list(image_set.splits) == ["train", "val", "test"]
    assert tuple(len(classes) for classes in image_set.splits.values()) == sizes
    assert sorted(np.concatenate(list(image_set.splits.values()))) == list(range(1623))
    assert image_set.class_split == f"omniglot-{split}-{'/'.join(map(str, sizes))}-rotated" and image_set.rotations
    assert load(data_dir, split).class_split == f"omniglot-{split}-{'/'.join(map(str, sizes))}"
    turned = omniglot.load(DataPaths(data_dir, data_dir.parent / "cache", False), split, True, "tasks")
    assert turned.class_split == f"{image_set.class_split}-in-tasks" and turned.distinct and not image_set.distinct


def test_vinyals_divides_gurmukhi_alone(data_dir: Path) -> None:
    image_set = load(data_dir)
    where: dict[str, set[str]] = {}
    for split, classes in image_set.splits.items():
        for c in classes:
            where.setdefault(image_set.names[c].split("/")[0], set()).add(split)
    assert {alphabet for alphabet, splits in where.items() if len(splits) > 1} == {"Gurmukhi"}
    assert sum("train" in s for s in where.values()) == 33
    assert sum(s == {"val"} for s in where.values()) == 5 and sum("test" in s for s in where.values()) == 13
    test = {image_set.names[c] for c in image_set.splits["test"]}
    assert sorted(name for name in test if name.startswith("Gurmukhi")) == [
        f"Gurmukhi/character{n}" for n in range(42, 46)
    ]


def test_lake_tests_on_the_evaluation_half_and_validates_on_the_background() -> None:
    parts = SPLITS["lake"]()
    assert parts["test"] == characters(EVALUATION)
    assert sorted(parts["train"] + parts["val"]) == sorted(characters(BACKGROUND))


def test_the_random_divisions_are_the_same_everywhere() -> None:
    assert SPLITS["maml"]()["train"][:2] == ["Malayalam/character06", "Japanese_(katakana)/character22"]
    assert SPLITS["lake"]()["val"][:2] == [
        "Japanese_(katakana)/character22",
        "Inuktitut_(Canadian_Aboriginal_Syllabics)/character02",
    ]
    assert len({name.split("/")[0] for name in SPLITS["maml"]()["val"]}) > 25  # drawn over all alphabets


# --- cache -------------------------------------------------------------------------------------------------


def test_the_second_time_comes_from_the_cache(data_dir: Path, monkeypatch) -> None:
    first = load(data_dir)
    monkeypatch.setattr(cache, "build", None)
    assert (load(data_dir, "lake", rotations=True).images == first.images).all()


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_changed_files_are_not_served_from_the_cache(tmp_path: Path, archives: dict[str, bytes], form: str) -> None:
    top, changed = HALF_NAMES[0], f"{HALF_NAMES[0]}/Latin/character05/0001_02.png"
    files = members(top) if form == "folder" else {f"{top}.zip": archives[top]}
    data_dir = put(tmp_path / "data", {**files, f"{HALF_NAMES[1]}.zip": archives[HALF_NAMES[1]]})
    before = load(data_dir)
    put(data_dir, {changed: MARK} if form == "folder" else {f"{top}.zip": archive({**members(top), changed: MARK})})
    os.utime(data_dir / changed if form == "folder" else data_dir, ns=(1, 1))
    after = load(data_dir)
    different = np.flatnonzero((before.images != after.images).any((1, 2, 3)))
    assert list(different) == [before.first[before.names.index("Latin/character05")] + 1]


# --- what is refused ---------------------------------------------------------------------------------------


def test_no_data_dir(tmp_path: Path) -> None:
    refused(tmp_path / "no", f"data_dir={tmp_path / 'no'}: no such folder", "download=true", r"images_background\.zip")


def test_nothing_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    message = refused(
        tmp_path / "data", "images_background.zip .* and images_evaluation.zip .*not found", "download=true"
    )
    assert f"{tmp_path / 'data' / 'omniglot-py'}" in message and "https://github.com/brendenlake/omniglot" in message


@pytest.mark.parametrize("half", HALF_NAMES)
def test_only_one_half_found(data_dir: Path, half: str) -> None:
    (data_dir / "omniglot-py" / f"{half}.zip").unlink()
    message = refused(data_dir, rf"{half}\.zip or {half}/ not found")
    assert next(top for top in HALF_NAMES if top != half) not in message


def test_missing_characters_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    files = {name.split("/", 1)[1]: content for half in HALF_NAMES for name, content in members(half).items()}
    files = {n: c for n, c in files.items() if not n.startswith(("Keble/", "Latin/character26"))}
    refused(put(tmp_path / "data", files), "dataset.split=vinyals needs 27 characters", "first 'Latin/character26'")


BROKEN: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("truncated", lambda whole: whole[: len(whole) // 2], "not a whole zip archive"),
    ("empty", lambda whole: b"", "not a whole zip archive"),
    ("a web page", lambda whole: b"\n<!DOCTYPE html><html>404</html>", "a web page, not data"),
    ("other content", lambda whole: archive({"readme.txt": b""}), r"holds no images_evaluation/<alphabet>"),
]


@pytest.mark.parametrize("damage, says", [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_archive_is_named(data_dir: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    path = data_dir / "omniglot-py" / "images_evaluation.zip"
    path.write_bytes(damage(path.read_bytes()))
    assert refused(data_dir, says).startswith(f"{path}: ")


def test_an_empty_folder_is_named(data_dir: Path) -> None:
    (data_dir / "omniglot-py" / "images_evaluation.zip").unlink()
    (data_dir / "images_evaluation" / "Keble").mkdir(parents=True)
    refused(data_dir, r"images_evaluation: holds no <alphabet>/<character>/\*\.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_an_archive_that_may_not_be_read_is_named(data_dir: Path) -> None:
    path = data_dir / "omniglot-py" / "images_evaluation.zip"
    path.chmod(0)
    assert refused(data_dir, r"cannot be read \(Permission denied\)").startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"text", PLAIN[:50]], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_a_broken_drawing_is_named(tmp_path: Path, archives: dict[str, bytes], form: str, content: bytes) -> None:
    top, member = HALF_NAMES[1], "Keble/character02/0001_02.png"
    files = {**members(top), f"{top}/{member}": content}
    files = files if form == "folder" else {f"{top}.zip": archive(files)}
    data_dir = put(tmp_path / "data", {**files, f"{HALF_NAMES[0]}.zip": archives[HALF_NAMES[0]]})
    refused(data_dir, rf"{top}(\.zip)?/.*{member}: cannot be read as an image \((?!.* at 0x).+\)")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_member_whose_bytes_changed_is_named(data_dir: Path) -> None:
    path = data_dir / "omniglot-py" / "images_evaluation.zip"
    whole = bytearray(path.read_bytes())
    place = whole.index(b"Tengwar/character03/0001_01.png")
    whole[place + 80] ^= 255  # inside the stored PNG
    path.write_bytes(whole)
    refused(data_dir, r"images_evaluation\.zip/.*Tengwar/character03/0001_01\.png: not a whole member .*CRC")


# --- download ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [HALF_NAMES, HALF_NAMES[1:]], ids=["both", "one"])
def test_download_fetches_only_what_is_missing(
    tmp_path: Path, archives: dict[str, bytes], monkeypatch, missing: tuple[str, ...]
) -> None:
    calls = []

    def fetch(address: str, md5: str, folder: Path) -> None:
        name = address.rpartition("/")[2]
        calls.append((address, md5))
        put(folder, {name: archives[name.removesuffix(".zip")]})

    monkeypatch.setattr(omniglot_files, "fetch", fetch)
    data_dir = put(tmp_path / "data", {f"{half}.zip": archives[half] for half in HALF_NAMES if half not in missing})
    check_whole(load(data_dir, download=True))
    assert calls == [(f"{omniglot_files.ADDRESS}/{half}.zip", omniglot_files.MD5[half]) for half in missing]
    check_whole(load(data_dir, download=True))  # nothing is missing: nothing is fetched
    assert len(calls) == len(missing)


# --- the real data -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """data_dir and cache_dir"""
    place = os.environ.get("METARUN_TEST_DATA")
    if not place:
        pytest.skip("METARUN_TEST_DATA is not set: it names the folder that holds omniglot-py/")
    return Path(place), tmp_path_factory.mktemp("omniglot")


@pytest.mark.slow
def test_the_real_data(real: tuple[Path, Path], monkeypatch) -> None:
    image_set = omniglot.load(DataPaths(*real, False), "vinyals", True)
    assert image_set.images.shape == (32460, 1, 28, 28)
    assert len(image_set.names) == 1623 and (image_set.count == 20).all()
    assert [len(classes) for classes in image_set.splits.values()] == [1028, 172, 423]
    assert 0.06 < image_set.images.mean() / 255 < 0.11
    assert (image_set.images.reshape(32460, -1).max(1) > 40).all()
    first = image_set.first[image_set.names.index("Braille/character01")]
    braille = image_set.images[first : first + 20]
    assert (braille[2] == braille[18]).all()  # the known duplicate, drawings 03 and 19
    assert (braille[2] != braille[17]).any()
    monkeypatch.setattr(cache, "build", None)
    again = omniglot.load(DataPaths(*real, False), "maml", False)
    assert (again.images == image_set.images).all()
    assert [len(classes) for classes in again.splits.values()] == [1100, 100, 423]
