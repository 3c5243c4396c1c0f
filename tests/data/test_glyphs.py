from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metarun.data.datasets import glyphs
from metarun.data.formats.detect import DataPaths
from metarun.data.image_set import ImageSet
from metarun.errors import UserError


def places(cache_dir: Path) -> DataPaths:
    return DataPaths(cache_dir / "none", cache_dir, False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="session")
def drawn(folder: Path) -> ImageSet:
    return glyphs.load(places(folder), 0)


@pytest.fixture(scope="session")
def by_class(drawn: ImageSet) -> np.ndarray:
    """[classes, drawings, 28, 28]"""
    return drawn.images.reshape(1550, 20, 28, 28)


def test_form(drawn: ImageSet) -> None:
    assert drawn.images.shape == (31000, 1, 28, 28) and drawn.images.dtype == np.uint8
    assert (drawn.count == 20).all() and (drawn.first == 20 * np.arange(1550)).all()
    assert len(set(drawn.names)) == 1550
    assert drawn.class_split == "glyphs-1000/150/400-seed0" and not drawn.rotations


def test_an_alphabet_lies_wholly_in_one_split(drawn: ImageSet) -> None:
    assert {split: len(classes) for split, classes in drawn.splits.items()} == {"train": 1000, "val": 150, "test": 400}
    assert sorted(np.concatenate(list(drawn.splits.values()))) == list(range(1550))
    alphabets = [{drawn.names[c].split("/")[0] for c in classes} for classes in drawn.splits.values()]
    assert [len(names) for names in alphabets] == [40, 6, 16] and len(set.union(*alphabets)) == 62


def test_ink_is_bright_on_a_black_ground_and_keeps_off_the_border(by_class: np.ndarray) -> None:
    assert (by_class.max((2, 3)) == 255).all()
    assert 0.06 < (by_class > 127).mean() < 0.16
    border = np.concatenate([by_class[:, :, edge, :] for edge in (0, -1)] + [by_class[..., edge] for edge in (0, -1)])
    assert border.max() < 128


def test_every_drawing_is_different(by_class: np.ndarray) -> None:
    assert len({drawing.tobytes() for drawing in by_class.reshape(31000, 28, 28)}) == 31000


def test_drawings_vary_but_pixels_still_tell_characters_apart(by_class: np.ndarray) -> None:
    # The nearest support picture, 5-way 1-shot on test classes: Omniglot gives 0.42, and chance would be 0.2.
    rng = np.random.default_rng(0)
    right = []
    for _ in range(200):
        classes = rng.choice(np.arange(1150, 1550), 5, replace=False)
        drawings = by_class[classes][:, rng.permutation(20)[:16]].reshape(5, 16, 784).astype(np.float32)
        support, query = drawings[:, 0], drawings[:, 1:].reshape(75, 784)
        distance = ((query[:, None] - support) ** 2).sum(2)
        right.append(distance.argmin(1) == np.repeat(np.arange(5), 15))
    assert 0.4 < np.mean(right) < 0.57


def test_the_seed_alone_decides(drawn: ImageSet) -> None:
    np.random.seed(1)
    again = glyphs.draw_alphabet(0, 3)
    assert (again == drawn.images[1500:2000, 0]).all()
    other = glyphs.draw_alphabet(1, 3)
    assert (again != other).reshape(500, -1).any(1).all()
    assert (again != glyphs.draw_alphabet(0, 4)).reshape(500, -1).any(1).all()


def test_other_pictures_need_another_version(drawn: ImageSet) -> None:
    # The cached file is named by VERSION: whoever changes the pictures raises it, and then this number.
    assert glyphs.VERSION == 1
    assert int(drawn.images[:500].sum()) == pytest.approx(10_244_452, rel=1e-4)


def test_the_second_time_comes_from_the_cache(drawn: ImageSet, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(glyphs, "draw_alphabet", None)
    assert (glyphs.load(places(folder), 0).images == drawn.images).all()
    assert sorted(file.name for file in folder.iterdir()) == [
        "glyphs-1-seed0-v1.json",
        "glyphs-1-seed0-v1.lock",
        "glyphs-1-seed0-v1.npy",
    ]


@pytest.mark.slow
def test_each_seed_has_a_file_of_its_own(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(glyphs, "draw_alphabet", lambda seed, number: np.full((500, 28, 28), 10 * seed + 1, np.uint8))
    for seed in (2, 3):
        image_set = glyphs.load(places(tmp_path), seed)
        assert (image_set.images == 10 * seed + 1).all() and image_set.class_split == f"glyphs-1000/150/400-seed{seed}"
    assert {file.name for file in tmp_path.glob("*.npy")} == {"glyphs-1-seed2-v1.npy", "glyphs-1-seed3-v1.npy"}


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cache_dir: cannot write .*/file/glyphs-1-seed0-v1\.npy"):
        glyphs.load(places(tmp_path / "file"), 0)
