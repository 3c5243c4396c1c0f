"""The data sets, by the name that `dataset=` takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from metarun.data import cifar, cub, folder, glyphs, miniimagenet, omniglot, tieredimagenet
from metarun.data.counter import noise, order
from metarun.data.on_disk import Places
from metarun.data.sampler import ImageSource
from metarun.data.sinusoid import SinusoidSource
from metarun.data.source import Shape, Source

__all__ = ["KNOWN", "Places", "Shape", "Source", "load", "noise", "order"]

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


def load(name: str, places: Places, device: torch.device, like: ImageSource | None = None, **options: Any) -> Source:
    """The data set `name`, ready to draw tasks from on `device`.

    Args:
        like: whose pictures its own are made to look like, normalised in the same way; None: as they are.

    Raises:
        UserError: its files are missing or damaged.
    """
    if name == "sinusoid":
        return SinusoidSource(device=device, **options)
    drawing = {key: options.pop(key) for key in ("normalise", "augment") if key in options}
    if like is None:
        return ImageSource(IMAGES[name](places, **options), device, **drawing)
    images = IMAGES[name](places, look=like.set.look, **options)
    drawing["normalise"] = like.normalise
    return ImageSource(replace(images, mean=like.set.mean, deviation=like.set.deviation), device, **drawing)
