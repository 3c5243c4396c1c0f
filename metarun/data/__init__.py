"""The data sets, by the names that `dataset=` takes.

To add one: an `ImageSet` loader in `datasets/` and its line in IMAGE_DATASETS, or, where its files are those of a
published set, a `PublishedDataset` and its place in PUBLISHED.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from metarun.data.datasets import cifar, cub, folder, glyphs, miniimagenet, omniglot, published, tieredimagenet
from metarun.data.datasets.sinusoid import SinusoidTaskSampler
from metarun.data.formats.detect import DataPaths
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.image_set import ImageSet
from metarun.data.random_numbers import method_noise, permutation_list
from metarun.data.task_sampler import TaskSampler, TaskShape

__all__ = ["PUBLISHED", "DataPaths", "TaskSampler", "TaskShape", "load", "method_noise", "permutation_list"]

PUBLISHED = (
    *(cifar.CIFAR_FS, cifar.FC100, miniimagenet.MINI_IMAGENET, tieredimagenet.TIERED_IMAGENET),
    cub.CUB,
)
IMAGE_DATASETS: dict[str, Callable[..., ImageSet]] = {  # (paths, **options of the data set) -> its images
    "glyphs": glyphs.load,
    "omniglot": omniglot.load,
    "folder": folder.load,
    **{dataset.name: partial(published.load, dataset) for dataset in PUBLISHED},
}


def load(
    name: str, paths: DataPaths, device: torch.device, like: ImageTaskSampler | None = None, **options: Any
) -> TaskSampler:
    """Task sampler of the data set `name`, whose tasks are drawn on `device`.

    Args:
        like: the sampler whose image size, channels and normalisation are used instead of the data set's own.
        options: the data set's configuration group, without its name.

    Raises:
        UserError: the data set's files are missing or damaged.
    """
    if name == "sinusoid":
        return SinusoidTaskSampler(device=device, **options)
    sampling = {key: options.pop(key) for key in ("normalise", "augment") if key in options}
    if like is None:
        return ImageTaskSampler(IMAGE_DATASETS[name](paths, **options), device, **sampling)
    images = IMAGE_DATASETS[name](paths, spec=like.image_set.spec, **options)
    sampling["normalise"] = like.normalise
    return ImageTaskSampler(replace(images, mean=like.image_set.mean, std=like.image_set.std), device, **sampling)
