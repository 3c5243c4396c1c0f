"""The sampler's promises: a task is a function of (seed, split, index), and nothing is shared that must not be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from metarun.data.datasets.sinusoid import SinusoidTaskSampler
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.image_set import ImageSet
from metarun.data.image_spec import ImageSpec
from metarun.data.random_numbers import philox_words, sample_without_replacement, uniform
from metarun.data.task_sampler import SPLITS, TaskSampler, TaskShape
from metarun.errors import UserError
from metarun.types import Task

CPU = torch.device("cpu")
SHAPE = TaskShape(ways=5, shots=2, queries=3)


def numbered_images(rotations: bool = False) -> ImageSet:
    """30 classes of 5 to 9 images; image number n holds n in its first two pixels, so that a draw can be traced."""
    count = np.array([5 + c % 5 for c in range(30)])
    total = int(count.sum())
    images = np.zeros((total, 1, 4, 4), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(total), 250)
    images[:, 0, 3, 3] = 255
    splits = {"train": np.arange(15), "val": np.arange(15, 22), "test": np.arange(22, 30)}
    names = tuple(f"class {c}" for c in range(30))
    first = np.cumsum(count) - count
    return ImageSet(images, first, count, names, splits, "thirds", ImageSpec(4, 1), (0.5,), (0.25,), rotations)


def image_numbers(data: torch.Tensor) -> torch.Tensor:
    pixels = (data * 255).round().long()
    return 250 * pixels[..., 0, 0, 0] + pixels[..., 0, 0, 1]


def sources() -> list[TaskSampler]:
    return [
        ImageTaskSampler(numbered_images(), CPU),
        ImageTaskSampler(numbered_images(rotations=True), CPU),
        SinusoidTaskSampler([0.8, 1.2], CPU),
    ]


@pytest.mark.parametrize("source", sources(), ids=["images", "rotated images", "sinusoid"])
def test_a_task_does_not_depend_on_what_it_is_drawn_with(source: TaskSampler) -> None:
    together = source.draw(3, "train", 0, 12, SHAPE)
    for first, count in [(0, 1), (11, 1), (4, 3), (0, 12)]:
        alone = source.draw(3, "train", first, count, SHAPE)
        expected = tree_map(lambda side, first=first, count=count: side[first : first + count], together)
        torch.testing.assert_close(alone, expected, rtol=0, atol=0)


@pytest.mark.parametrize("source", sources(), ids=["images", "rotated images", "sinusoid"])
def test_seeds_splits_and_indices_differ(source: TaskSampler) -> None:
    drawn = [source.draw(seed, split, 0, 4, SHAPE).support_data for seed in (0, 1) for split in SPLITS]
    drawn.append(source.draw(0, "train", 4, 4, SHAPE).support_data)
    for one in range(len(drawn)):
        for other in range(one):
            assert not torch.equal(drawn[one], drawn[other])
    assert not torch.equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("split", SPLITS)
def test_support_and_query_share_no_image_and_labels_are_right(split: str) -> None:
    images = numbered_images()
    source = ImageTaskSampler(images, CPU)
    tasks = source.draw(0, split, 0, 200, SHAPE)
    class_of = np.repeat(np.arange(30), images.count)
    support, query = image_numbers(tasks.support_data), image_numbers(tasks.query_data)
    for task in range(200):
        drawn = torch.cat([support[task], query[task]])
        assert len(drawn.unique()) == len(drawn)
        classes = torch.from_numpy(class_of[drawn])
        labels = torch.cat([tasks.support_target[task], tasks.query_target[task]])
        pairs = {(int(label), int(cls)) for label, cls in zip(labels, classes, strict=True)}
        assert len(pairs) == SHAPE.ways and len({cls for _, cls in pairs}) == SHAPE.ways
        assert {cls for _, cls in pairs} <= set(images.splits[split].tolist())
    assert torch.equal(tasks.support_target[0].bincount(), torch.full((5,), 2))
    assert torch.equal(tasks.query_target[0].bincount(), torch.full((5,), 3))


def test_every_class_and_image_is_drawn_equally_often() -> None:
    images = numbered_images()
    tasks = ImageTaskSampler(images, CPU).draw(0, "train", 0, 6000, TaskShape(5, 1, 1))
    support = image_numbers(tasks.support_data)
    class_of = np.repeat(np.arange(30), images.count)
    per_class = np.bincount(class_of[support.ravel()], minlength=30)[:15]
    assert abs(per_class / (6000 * 5 / 15) - 1).max() < 0.08  # 2000 draws each, 3.6 standard deviations
    per_image = np.bincount(support.ravel(), minlength=len(class_of))[: int(images.count[:15].sum())]
    assert abs(per_image * images.count[class_of[: len(per_image)]] / 2000 - 1).max() < 0.25
    first_label = np.bincount(class_of[support[:, 0]], minlength=30)[:15]  # each class is label 0 as often
    assert abs(first_label / 400 - 1).max() < 0.2


def test_images_reach_the_network_as_they_are() -> None:
    images = numbered_images()
    task = ImageTaskSampler(images, CPU).draw(0, "val", 7, 1, SHAPE)
    number = image_numbers(task.query_data)[0]
    expected = torch.from_numpy(images.images[number]).float() / 255
    torch.testing.assert_close(task.query_data[0], expected)


def test_a_turned_class_is_a_class_of_its_own() -> None:
    images = numbered_images(rotations=True)
    source = ImageTaskSampler(images, CPU)
    source.check("val", TaskShape(28, 2, 3))
    tasks = source.draw(0, "val", 0, 50, TaskShape(28, 2, 3))
    seen = set()
    for task in range(50):
        turned = {}
        for image, label in zip(tasks.support_data[task], tasks.support_target[task], strict=True):
            quarter = next(q for q in range(4) if upright(image, q))
            turned.setdefault(int(label), set()).add(quarter)
        assert all(len(quarters) == 1 for quarters in turned.values())  # all images of a class are turned alike
        seen.update(quarter for quarters in turned.values() for quarter in quarters)
    assert seen == {0, 1, 2, 3}


def test_turned_in_tasks_no_task_holds_a_class_twice() -> None:
    images = replace(numbered_images(rotations=True), distinct=True)
    source, shape = ImageTaskSampler(images, CPU), TaskShape(7, 2, 3)
    source.check("val", shape)
    with pytest.raises(UserError, match=r"ways=8: the val split .* has 7 classes; 7 is the most"):
        source.check("val", TaskShape(8, 2, 3))
    chosen, quarters = source.draw_classes(0, "val", 0, 4000, shape)
    assert all(len(set(row)) == 7 for row in chosen.tolist())
    table = np.zeros((7, 4), int)  # each class at each turn, over 4000 tasks: uniform, and each by itself
    np.add.at(table, (chosen.ravel() - 15, quarters.ravel()), 1)
    assert (table.sum(1) == 4000).all() and ((table - 1000) ** 2 / 1000).sum() < 21 + 5 * (2 * 21) ** 0.5
    assert len(np.unique(quarters @ 4 ** np.arange(7))) > 3000
    whole, part = source.draw(3, "val", 0, 9, shape), source.draw(3, "val", 4, 2, shape)
    assert all(torch.equal(one[4:6], other) for one, other in zip(whole, part, strict=True))
    for image, label in zip(whole.support_data[0], whole.support_target[0], strict=True):
        assert upright(image, int(source.draw_classes(3, "val", 0, 1, shape)[1][0, label]))


def test_turned_classes_are_drawn_as_ever() -> None:
    """Numbers of a run that was made before there was a choice."""
    chosen, quarters = ImageTaskSampler(numbered_images(rotations=True), CPU).draw_classes(
        5, "test", 2, 2, TaskShape(4, 2, 3)
    )
    assert (chosen.tolist(), quarters.tolist()) == (
        [[27, 28, 23, 25], [26, 29, 24, 25]],
        [[0, 1, 0, 3], [0, 0, 1, 3]],
    )


def upright(image: torch.Tensor, quarters: int) -> bool:
    """The bright mark stands at the lower right once the turn is undone."""
    return bool(torch.rot90(image, -quarters, (-2, -1))[0, 3, 3] == 1)


def test_more_than_a_split_holds_is_refused() -> None:
    source = ImageTaskSampler(numbered_images(), CPU)
    source.check("train", TaskShape(15, 2, 3))
    with pytest.raises(UserError, match=r"ways=16: the train split \(thirds\) has 15 classes; 7 is the most"):
        source.check("train", TaskShape(16, 1, 1))
    with pytest.raises(UserError, match=r"shots=2 \+ queries=4 make 6 images a class: class 'class 0' .* has 5"):
        source.check("train", TaskShape(5, 2, 4))
    with pytest.raises(UserError, match=r"eval.shots=2 \+ queries=4 make 6"):
        source.check("val", TaskShape(5, 2, 4), ["ways", "eval.shots", "queries"])
    ImageTaskSampler(replace(numbered_images(), rotations=True), CPU).check("train", TaskShape(60, 1, 1))


def test_draws_without_replacement_are_uniform_over_ordered_choices() -> None:
    drawn = sample_without_replacement(philox_words(0, 0, 0, 60_000, 6), np.full(60_000, 5))
    assert (np.sort(drawn, axis=1)[:, 1:] != np.sort(drawn, axis=1)[:, :-1]).all()
    counts = np.unique(drawn @ np.array([25, 5, 1]), return_counts=True)[1]
    assert len(counts) == 5 * 4 * 3
    assert ((counts - 1000) ** 2 / 1000).sum() < 59 + 5 * (2 * 59) ** 0.5  # chi-squared, 59 degrees of freedom
    assert sample_without_replacement(philox_words(0, 0, 0, 100, 10), np.full(100, 5)).sum(1).tolist() == [10] * 100


def test_counter_words_are_one_stream_cut_up() -> None:
    whole = philox_words(1, 2, 0, 50, 7)
    assert np.array_equal(whole[20:30], philox_words(1, 2, 20, 10, 7))
    assert len(np.unique(whole)) == whole.size
    assert not np.array_equal(whole, philox_words(1, 3, 0, 50, 7)) and not np.array_equal(
        whole, philox_words(2, 2, 0, 50, 7)
    )
    numbers = uniform(philox_words(0, 0, 0, 100_000, 1), -5, 5)
    assert numbers.min() >= -5 and numbers.max() < 5
    assert abs(numbers.mean()) < 0.05 and abs(numbers.var() - 100 / 12) < 0.1


def curves(frequency: list[float], count: int = 2000) -> Task:
    return SinusoidTaskSampler(frequency, CPU).draw(0, "train", 0, count, TaskShape(0, 10, 40))


def test_sinusoids_are_sinusoids_with_the_published_ranges() -> None:
    tasks = curves([1.0, 1.0])
    assert tasks.support_data.shape == (2000, 10, 1) and tasks.query_target.shape == (2000, 40, 1)
    assert tasks.query_data.abs().max() <= 5 and tasks.query_target.abs().max() <= 5
    assert abs(float(tasks.query_target.square().mean()) - 4.252) < 0.25  # E[A^2] / 2, the error of predicting 0
    x, y = tasks.query_data.double(), tasks.query_target.double()
    basis = torch.cat([x.sin(), x.cos()], dim=2)  # A sin(x - phase) is a sum of the two
    fitted = basis @ torch.linalg.lstsq(basis, y).solution
    torch.testing.assert_close(fitted, y, rtol=0, atol=1e-5)
    amplitude = torch.linalg.lstsq(basis, y).solution.norm(dim=1)
    assert 0.1 <= amplitude.min() < 0.15 and 4.95 < amplitude.max() <= 5.0


def test_the_frequency_option_varies_the_frequency() -> None:
    x, y = (side.double() for side in curves([0.8, 1.2], 200)[2:])
    basis = torch.cat([x.sin(), x.cos()], dim=2)
    fitted = basis @ torch.linalg.lstsq(basis, y).solution
    assert ((fitted - y).abs().amax((1, 2)) > 1e-3).float().mean() > 0.9


def test_a_curve_is_the_same_whatever_number_of_points() -> None:
    source = SinusoidTaskSampler([1.0, 1.0], CPU)
    solutions = []
    for shape in (TaskShape(0, 5, 5), TaskShape(0, 10, 90)):
        x, y = (side.double() for side in source.draw(0, "test", 0, 3, shape)[2:])
        solutions.append(torch.linalg.lstsq(torch.cat([x.sin(), x.cos()], dim=2), y).solution)
    torch.testing.assert_close(*solutions, rtol=1e-4, atol=1e-4)
