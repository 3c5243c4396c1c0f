"""mini-ImageNet, tieredImageNet and CUB in every form: each class in its split, with its own pictures."""

from __future__ import annotations

import shutil
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarun.data import IMAGE_DATASETS
from metarun.data.formats.detect import DataPaths
from metarun.data.image_set import ImageSet
from metarun.data.splits import ClassSplits
from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError
from tests.helpers.image_forms import (
    DIVISION,
    Write,
    classes,
    colour,
    names_of,
    pack,
    picture,
    protocol2,
    protocol4,
    put,
    python2,
    write_birds,
    write_cache,
    write_categories,
    write_csv,
    write_folders,
    write_hdf5,
    write_lists,
    write_npz,
    write_pngs,
)

BULK = np.r_[4:38, 46:80]  # rows and columns away from edges, which JPEG smears


def load(dataset: str, data_dir: Path, split: str = "", download: bool = False) -> ImageSet:
    return IMAGE_DATASETS[dataset](DataPaths(data_dir, data_dir.parent / "cache", download), split or DIVISION[dataset])


def check(found: ImageSet, names: ClassSplits, named: bool = True, tolerance: int = 0) -> None:
    """Every class is in its split, under its name, with its own two pictures."""
    expected = {colour(number): (split, i, number, name) for split, i, number, name in classes(names)}
    for split in SPLITS:
        for label in found.splits[split].tolist():
            images = found.images[found.first[label] :][: found.count[label]].astype(int)
            near = tuple(np.rint(images[0, :, 60, 60] / 10).astype(int) * 10)
            whose, i, number, name = expected.pop(near)
            assert whose == split
            assert found.names[label] == (name if named else f"{split}/{i}")
            assert images.shape == (2, 3, 84, 84)
            for index, image in enumerate(images):
                difference = image - picture(number, index, 84).transpose(2, 0, 1)
                assert np.abs(difference[:, BULK][:, :, BULK]).max() <= tolerance
    assert not expected


MINI: dict[str, tuple[Write, dict[str, Any]]] = {
    "Ren's pickles": (write_cache, {}),
    "Ren's pickles, -validation": (partial(write_cache, val="validation"), {}),
    "Ren's pickles, Python 2": (partial(write_cache, dumps=python2), {}),
    "Ren's pickles, mini-imagenet.tar.gz": (pack(write_cache, "mini-imagenet.tar.gz"), {}),
    "Torchmeta's HDF5": (write_hdf5, {}),
    "MetaOptNet's pickles": (write_categories, {}),
    "MetaOptNet's pickles, Python 2": (partial(write_categories, dumps=python2), {}),
    "MetaOptNet's pickles, no names": (partial(write_categories, words=False), {"named": False}),
    "CSV filename,label": (partial(write_csv, columns=("filename", "label")), {"tolerance": 5}),
    "CSV class_name,image_name": (partial(write_csv, columns=("class_name", "image_name")), {"tolerance": 5}),
    "split folders": (write_folders, {"tolerance": 5}),
    "split folders, .zip": (pack(write_folders, "mini_imagenet.zip", "mini_imagenet/"), {"tolerance": 5}),
    "class folders": (partial(write_folders, splits=False), {"tolerance": 5}),
}
TIERED: dict[str, tuple[Write, dict[str, Any]]] = {
    "Ren's arrays of PNG, protocol 2": (partial(write_pngs, dumps=protocol2), {}),
    "Ren's arrays of PNG, protocol 4": (partial(write_pngs, dumps=protocol4), {}),
    "Ren's arrays of PNG, Python 2": (partial(write_pngs, dumps=python2), {}),
    "Ren's bytes of PNG, protocol 4": (partial(write_pngs, dumps=protocol4, arrays=False), {}),
    "Ren's PNG, names that are not unique": (partial(write_pngs, dumps=protocol4, words=False), {"named": False}),
    "Ren's PNG, tiered-imagenet.tar": (
        pack(partial(write_pngs, dumps=protocol4), "tiered-imagenet.tar", "tiered-imagenet/"),
        {},
    ),
    "MetaOptNet's NPZ": (partial(write_npz, save=np.savez), {"named": False}),
    "MetaOptNet's NPZ, compressed": (partial(write_npz, save=np.savez_compressed), {"named": False}),
    "NPZ, label_specific": (partial(write_npz, save=np.savez, labels="label_specific"), {}),
    "Torchmeta's HDF5 of PNG": (partial(write_hdf5, kind="PNG"), {}),
    "split folders": (partial(write_folders, kind="PNG"), {}),
    "class folders": (partial(write_folders, kind="PNG", splits=False), {}),
}
CUB: dict[str, tuple[Write, dict[str, Any]]] = {
    "images": (write_birds, {"tolerance": 5}),
    "CUB_200_2011.tgz": (pack(write_birds, "CUB_200_2011.tgz", "CUB_200_2011/"), {"tolerance": 5}),
    "CloserLook's JSON": (write_lists, {"tolerance": 5}),
    "Torchmeta's HDF5 of JPEG": (partial(write_hdf5, kind="JPEG"), {"tolerance": 5}),
}


def form(dataset: str, write: Write, expected: dict[str, Any], folder: Path) -> None:
    names = names_of(dataset)
    write(folder, names)
    before = tree(folder)
    folder.chmod(0o555)
    try:
        found = load(dataset, folder)
    finally:
        folder.chmod(0o755)
    check(found, names, **expected)
    assert tree(folder) == before
    assert not [path for path in (folder.parent / "cache").iterdir() if path.is_dir()]  # nothing unpacked is left


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("kind", MINI)
def test_miniimagenet(kind: str, tmp_path: Path) -> None:
    form("miniimagenet", *MINI[kind], tmp_path / "data")


@pytest.mark.parametrize("kind", TIERED)
def test_tieredimagenet(kind: str, tmp_path: Path) -> None:
    form("tieredimagenet", *TIERED[kind], tmp_path / "data")


@pytest.mark.parametrize("kind", CUB)
def test_cub(kind: str, tmp_path: Path) -> None:
    form("cub", *CUB[kind], tmp_path / "data")


@pytest.mark.parametrize(
    "dataset, folder, write",
    [
        ("miniimagenet", "mini-imagenet", write_cache),
        ("miniimagenet", "miniimagenet", write_hdf5),
        ("tieredimagenet", "tiered-imagenet", partial(write_npz, save=np.savez)),
        ("cub", "CUB_200_2011", write_birds),
        ("cub", "cub", partial(write_hdf5, kind="JPEG")),
        ("cub", "cubirds200", write_birds),
        ("cub", "filelists/CUB/CUB_200_2011", write_birds),
        ("cub", "CUB_200_2011/images", partial(write_folders, splits=False)),
    ],
)
def test_places(dataset: str, folder: str, write: Write, tmp_path: Path) -> None:
    """Below data_dir, under the names that the data sets usually have; what else lies there is left alone."""
    write(tmp_path / "data" / folder, names_of(dataset))
    put(tmp_path / "data" / "holiday" / "2011" / "beach.jpg", b"no picture")
    assert load(dataset, tmp_path / "data").images.shape[0] == 2 * sum(map(len, names_of(dataset).values()))


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    "dataset, files",
    [
        ("miniimagenet", ["mini-imagenet-cache-{train,val,test}.pkl", "{train,val,test}/CLASS/*.jpg"]),
        ("tieredimagenet", ["{train,val,test}_images_png.pkl", "{train,val,test}_images.npz"]),
        ("cub", ["CUB_200_2011.tgz", "https://data.caltech.edu/records/65de6-vp158"]),
    ],
)
def test_nothing_there(dataset: str, files: list[str], download: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(dataset, tmp_path, download=download)
    message = str(caught.value)
    assert message.startswith(f"data_dir={tmp_path}: {dataset} not found") and "\n" not in message
    assert all(file in message for file in files) and "download=true does not fetch it" in message
    assert not list(tmp_path.iterdir())


def test_a_split_that_the_files_do_not_have(tmp_path: Path) -> None:
    """Numbers cannot be divided in another way than the files do; names can."""
    write_categories(tmp_path / "data", names_of("miniimagenet"), words=False)
    with pytest.raises(UserError, match=r"dataset.split=vinyals: .* the files hold 64/16/20"):
        load("miniimagenet", tmp_path / "data", "vinyals")


def test_one_split_twice(tmp_path: Path) -> None:
    """The training file under the name of the validation file would test on classes that were trained on."""
    folder = tmp_path / "data"
    write_cache(folder, names_of("miniimagenet"))
    shutil.copy(folder / "mini-imagenet-cache-train.pkl", folder / "mini-imagenet-cache-val.pkl")
    with pytest.raises(UserError, match="the files hold 64/64/20"):
        load("miniimagenet", folder)


def test_files_under_each_others_names(tmp_path: Path) -> None:
    """The names of classes decide, not those of files."""
    folder, names = tmp_path / "data", names_of("miniimagenet")
    write_cache(folder, {"train": names["test"], "val": names["train"], "test": names["val"]})
    found = load("miniimagenet", folder)
    assert [found.names[label] for label in found.splits["val"]] == names["val"]


def test_an_archive_without_the_data_set(tmp_path: Path) -> None:
    put(tmp_path / "whole" / "readme.txt", b"nothing else")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "mini-imagenet.tar.gz", "w:gz") as tarred:
        tarred.add(tmp_path / "whole", ".")
    with pytest.raises(UserError, match=r"data/mini-imagenet.tar.gz: holds no known format of the data set"):
        load("miniimagenet", tmp_path / "data")
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
