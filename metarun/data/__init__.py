"""The data sets, by the name that `dataset=` takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from metarun.data.datasets import cifar, cub, folder, glyphs, miniimagenet, omniglot, tieredimagenet
from metarun.data.datasets.sinusoid import SinusoidTaskSampler
from metarun.data.formats.detect import DataPaths
from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.random_numbers import method_noise, permutation_list
from metarun.data.task_sampler import TaskSampler, TaskShape

__all__ = ["KNOWN", "DataPaths", "TaskSampler", "TaskShape", "load", "method_noise", "permutation_list"]

KNOWN = (cifar.CIFAR_FS, cifar.FC100, miniimagenet.KNOWN, tieredimagenet.KNOWN, cub.KNOWN)  # published, on disk
IMAGES = {
    "glyphs": glyphs.load,
    "omniglot": omniglot.load,
    "cifar_fs": cifar.load_cifar_fs,
    "fc100": cifar.load_fc100,
    "miniimagenet": miniimagenet.load,
    "tieredimagenet": tieredimagenet.load,
    "cub": cub.load,
    "folder": folder.load,
}


def load(
    name: str, places: DataPaths, device: torch.device, like: ImageTaskSampler | None = None, **options: Any
) -> TaskSampler:
    """The data set `name`, ready to draw tasks from on `device`.

    Args:
        like: whose pictures its own are made to look like, normalised in the same way; None: as they are.

    Raises:
        UserError: its files are missing or damaged.
    """
    if name == "sinusoid":
        return SinusoidTaskSampler(device=device, **options)
    drawing = {key: options.pop(key) for key in ("normalise", "augment") if key in options}
    if like is None:
        return ImageTaskSampler(IMAGES[name](places, **options), device, **drawing)
    images = IMAGES[name](places, look=like.set.look, **options)
    drawing["normalise"] = like.normalise
    return ImageTaskSampler(replace(images, mean=like.set.mean, deviation=like.set.deviation), device, **drawing)
