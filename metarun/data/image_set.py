"""What every image data set is once it has been read: images, classes, and which classes each split holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metarun.data.cache import CachedDataset
from metarun.data.image_spec import ImageSpec
from metarun.errors import UserError

MIN_VARIANCE = 1e-6  # a variance: a channel that never changes is not divided by zero


@dataclass(frozen=True)
class ImageSet:
    """Images of many classes, held once as uint8; a class's images stand one after another."""

    images: np.ndarray  # uint8 [N, channels, height, width]
    first: np.ndarray  # int64 [classes]: where each class's images begin
    count: np.ndarray  # int64 [classes]: how many images each class has
    names: tuple[str, ...]  # [classes]
    splits: dict[str, np.ndarray]  # "train", "val", "test" -> int64 class numbers; no class stands in two
    class_split: str  # the name of this division into classes; stands in every result
    spec: ImageSpec  # what pictures of other people's are made into
    mean: tuple[float, ...]  # of each channel, in [0, 1], over the training classes
    std: tuple[float, ...]  # the standard one
    rotations: bool = False  # a class turned by 90, 180, 270 degrees counts as three more classes
    distinct: bool = False  # rotations: a task's classes differ, each turned by itself; else two may be turns of one
    any_size: bool = False  # classes with too few images for a task are left out


def image_set(
    found: CachedDataset, spec: ImageSpec, parts: Mapping[str, Sequence[str]], class_split: str, rotations: bool = False
) -> ImageSet:
    """An image set of the prepared classes that `parts` names for each split."""
    manifest = found.manifest
    number = {name: i for i, name in enumerate(manifest.names)}
    splits = {part: np.sort(np.array([number[name] for name in names], np.int64)) for part, names in parts.items()}
    count = np.array(manifest.count, np.int64)
    train = splits["train"]
    total = count[train].sum() * spec.size**2
    if not total:
        raise UserError(f"{manifest.source}: no picture of the training classes can be read; {found.path} says why")
    mean = np.array(manifest.sums)[train].sum(0) / total
    square = np.array(manifest.squares)[train].sum(0) / total
    return ImageSet(
        images=found.images,
        first=np.array(manifest.first, np.int64),
        count=count,
        names=tuple(manifest.names),
        splits=splits,
        class_split=class_split,
        spec=spec,
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt((square - mean**2).clip(min=MIN_VARIANCE)).tolist()),
        rotations=rotations,
    )
