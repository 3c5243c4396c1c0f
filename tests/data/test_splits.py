from __future__ import annotations

import json
from pathlib import Path

import pytest

from metarun.data.splits import published_splits, split_classes
from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError

SIZES = {
    ("cifar_fs", "bertinetto"): (64, 16, 20),
    ("fc100", "oreshkin"): (60, 20, 20),
    ("miniimagenet", "ravi"): (64, 16, 20),
    ("miniimagenet", "vinyals"): (60, 20, 20),
    ("tieredimagenet", "ren"): (351, 97, 160),
    ("cub", "closerlook"): (100, 50, 50),
}


@pytest.mark.parametrize(("dataset", "split"), SIZES)
def test_published_divisions_have_their_sizes_and_share_no_class(dataset: str, split: str) -> None:
    parts = published_splits(dataset)[split]
    names = [name for part in SPLITS for name in parts[part]]
    assert tuple(len(parts[part]) for part in SPLITS) == SIZES[dataset, split]
    assert len(set(names)) == len(names)


def test_cub_is_divided_by_the_rule_of_closerlook() -> None:
    """Class number i (from 0) trains where it is even; the others validate and test in turn."""
    for part, rest in (("train", {0, 2}), ("val", {1}), ("test", {3})):
        assert {(int(name[:3]) - 1) % 4 for name in published_splits("cub")["closerlook"][part]} == rest


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    parts = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(parts))
    assert split_classes("cub", str(path), "abcde", None) == (parts, "cub-mine-2/1/1")
    with pytest.raises(
        UserError, match=r"1 of its classes \(2/1/1\) are not there, first 'd'; the files hold 3 classes"
    ):
        split_classes("cub", str(path), "abc", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no", "must be JSON"),
        ('{"train": ["a"]}', "KeyError"),
        ('["a"]', "must be JSON"),
        ('{"train": "abc", "val": ["c"], "test": ["d"]}', "train must be a list"),
        ('{"train": [], "val": ["c"], "test": ["d"]}', "train must be a list"),
        ('{"train": ["a"], "val": ["c"], "test": ["a"]}', "class 'a' stands in it twice"),
    ],
)
def test_a_wrong_file_of_ones_own_is_told(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        split_classes("cub", str(path), "abcd", None)
    with pytest.raises(UserError, match="cannot be read"):
        split_classes("cub", str(tmp_path / "none.json"), "abcd", None)


def test_an_unknown_division_is_told_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"dataset\.split=rawi: choose one of ravi, vinyals, or .*; did you mean 'ravi'\?"
    ):
        split_classes("miniimagenet", "rawi", [], None)


def test_the_files_own_division_stands_in_where_they_name_classes_otherwise() -> None:
    given = {part: [f"{part}/{i}" for i in range(size)] for part, size in zip(SPLITS, (64, 16, 20), strict=True)}
    names = [name for part in given.values() for name in part]
    assert split_classes("miniimagenet", "ravi", names, given) == (given, "miniimagenet-ravi-as-given-64/16/20")
    with pytest.raises(UserError, match=r"dataset\.split=vinyals: .* not there.*the files hold 64/16/20"):
        split_classes("miniimagenet", "vinyals", names, given)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_division_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    parts = {"train": ["é", "b"], "val": ["c"], "test": ["d"]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(parts, ensure_ascii=False), encoding=encoding)
    assert split_classes("cub", str(path), "ébcd", None) == (parts, "cub-mine-2/1/1")
