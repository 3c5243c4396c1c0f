from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metarun.data.augment import NAMES, augment_images
from metarun.data.cache import RawDataset, load_or_build_cache
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.image_set import ImageSet
from metarun.data.image_set import image_set as image_set_of
from metarun.data.image_spec import ImageSpec
from metarun.data.random_numbers import augmentation_noise
from metarun.data.task_sampler import TaskShape

LOOK = ImageSpec(8, 3)


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    """15 classes of 20 noisy pictures each."""
    rows = np.random.default_rng(0).integers(40, 200, (300, 8, 8, 3), dtype=np.uint8)
    names = [str(i) for i in range(15)]
    images = (("", row) for row in rows)
    found = load_or_build_cache(tmp_path, "a", LOOK, "", lambda _: RawDataset(names, np.arange(300) // 20, images))
    return image_set_of(found, LOOK, {"train": names[:5], "val": names[5:10], "test": names[10:]}, "thirds")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(40, 3, 16, 16)


@pytest.fixture
def random() -> torch.Tensor:
    return torch.rand(40, 6)


def test_a_crop_is_a_window_of_the_padded_image(images: torch.Tensor, random: torch.Tensor) -> None:
    found = augment_images(images, random, ["crop"])
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places = set()
    for image, whole, (down, right) in zip(found, padded, random[:, :2].tolist(), strict=True):
        d, r = int(down * 5), int(right * 5)
        assert torch.equal(image, whole[:, d : d + 16, r : r + 16])
        places.add((d, r))
    assert len(places) > 10


def test_half_of_the_images_are_mirrored(images: torch.Tensor, random: torch.Tensor) -> None:
    found = augment_images(images, random, ["flip"])
    mirrored = random[:, 2] < 0.5
    assert torch.equal(found[mirrored], images[mirrored].flip(-1)) and torch.equal(found[~mirrored], images[~mirrored])
    assert 10 < mirrored.sum() < 30


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_within_bounds(images: torch.Tensor, channels: int) -> None:
    images = images[:, :channels]
    still = torch.full((40, 6), 0.5)
    torch.testing.assert_close(augment_images(images, still, ["jitter"]), images)
    darkest, brightest = still.clone(), still.clone()
    darkest[:, 3], brightest[:, 3] = 0, 1
    torch.testing.assert_close(augment_images(images, darkest, ["jitter"]), images * 0.6)
    torch.testing.assert_close(augment_images(images, brightest, ["jitter"]), (images * 1.4).clamp(0, 1))
    flat = still.clone()
    flat[:, 4] = 0  # less contrast: closer to the mean
    assert (augment_images(images, flat, ["jitter"]).std((1, 2, 3)) < images.std((1, 2, 3)) * 0.7).all()
    pale = still.clone()
    pale[:, 5] = 0  # less saturation: the channels come closer
    if channels == 3:
        assert (augment_images(images, pale, ["jitter"]).std(1) <= images.std(1) * 0.61).all()


def test_only_training_images_change_and_the_same_way_however_drawn(image_set: ImageSet) -> None:
    cpu, shape = torch.device("cpu"), TaskShape(3, 1, 2)
    plain, changed = ImageTaskSampler(image_set, cpu), ImageTaskSampler(image_set, cpu, augment=NAMES)
    for split in ("val", "test"):
        assert torch.equal(plain.draw(0, split, 0, 4, shape).query_data, changed.draw(0, split, 0, 4, shape).query_data)
    whole = changed.draw(0, "train", 0, 6, shape)
    assert not torch.equal(whole.query_data, plain.draw(0, "train", 0, 6, shape).query_data)
    assert torch.equal(whole.query_target, plain.draw(0, "train", 0, 6, shape).query_target)
    part = changed.draw(0, "train", 3, 2, shape)
    assert torch.equal(whole.query_data[3:5], part.query_data) and torch.equal(
        whole.support_data[3:5], part.support_data
    )
    drawn = augmentation_noise(0, 0, 6, 9)
    assert drawn.shape == (6, 9, 6) and torch.equal(drawn[3:5], augmentation_noise(0, 3, 2, 9))
    assert len(drawn.unique()) == drawn.numel()


def test_normalised_images_have_mean_0_and_deviation_1(image_set: ImageSet) -> None:
    cpu, shape = torch.device("cpu"), TaskShape(5, 10, 10)
    source = ImageTaskSampler(image_set, cpu, normalise=True)
    drawn = source.draw(0, "train", 0, 50, shape).query_data
    assert drawn.mean().abs() < 0.05 and (drawn.std() - 1).abs() < 0.05
    plain = ImageTaskSampler(image_set, cpu).draw(0, "train", 0, 50, shape).query_data
    torch.testing.assert_close(source.normalise_images(plain), drawn)
