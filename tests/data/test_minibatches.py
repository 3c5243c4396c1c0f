from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.minibatches import minibatches
from tests.data.test_image_sampler import CPU, image_numbers, numbered_images


@pytest.mark.parametrize("rotations", [False, True])
def test_an_epoch_shows_each_training_image_once_with_its_class(rotations: bool) -> None:
    found = numbered_images(rotations)
    source = ImageTaskSampler(found, CPU)
    turns = 4 if rotations else 1
    images = int(found.count[found.splits["train"]].sum()) * turns
    assert source.num_training_classes == 15 * turns
    data, labels = minibatches(source, 3, 0, images, 2)  # two epochs
    seen = []
    for epoch in (data.flatten(0, 1)[:images], data.flatten(0, 1)[images:]):
        upright = [torch.rot90(picture, -turn, (-2, -1)) for picture in epoch for turn in range(turns)]
        upright = [picture for picture in upright if picture[0, 3, 3] == 1]  # the white corner is where it was
        numbers = image_numbers(torch.stack(upright))
        assert len(numbers) == images and set(numbers.bincount().tolist()) == {turns}
        seen.append(numbers)
    assert not torch.equal(*seen)
    for number, label in zip(torch.cat(seen).tolist(), labels.flatten().tolist(), strict=True):
        one = found.splits["train"][label // turns]
        assert found.first[one] <= number < found.first[one] + found.count[one]


def test_the_turns_of_a_class_are_classes() -> None:
    data, labels = minibatches(ImageTaskSampler(numbered_images(rotations=True), CPU), 0, 0, 20, 10)
    corners = {0: (3, 3), 1: (0, 3), 2: (0, 0), 3: (3, 0)}  # where a quarter circle takes the white one
    for picture, label in zip(data.flatten(0, 1), labels.flatten().tolist(), strict=True):
        assert picture[0][corners[label % 4]] == 1


def test_a_minibatch_does_not_depend_on_what_it_is_drawn_with() -> None:
    source = ImageTaskSampler(numbered_images(), CPU, normalise=True, augment=("crop", "flip"))
    together = minibatches(source, 3, 0, 40, 7)
    for first, count in ((0, 1), (39, 1), (11, 9)):
        alone = minibatches(source, 3, first, count, 7)
        assert all(torch.equal(a, b[first : first + count]) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(minibatches(source, 4, 0, 40, 7)[1], together[1])


def test_augmentation_and_normalisation_are_applied() -> None:
    plain = minibatches(ImageTaskSampler(numbered_images(), CPU), 0, 0, 2, 8)[0]
    normal = minibatches(ImageTaskSampler(numbered_images(), CPU, normalise=True), 0, 0, 2, 8)[0]
    torch.testing.assert_close(normal, (plain - 0.5) / 0.25)
    flipped = minibatches(ImageTaskSampler(numbered_images(), CPU, augment=("flip",)), 0, 0, 2, 8)[0]
    same = (flipped == plain).flatten(2).all(2)
    turned = (flipped == plain.flip(-1)).flatten(2).all(2)
    assert (same | turned).all() and same.any() and turned.any()


def test_only_training_classes_are_shown() -> None:
    found = numbered_images()
    source = ImageTaskSampler(replace(found, splits={**found.splits, "train": found.splits["test"]}), CPU)
    first = int(found.first[22])
    assert image_numbers(minibatches(source, 0, 0, 10, 5)[0]).min() >= first
