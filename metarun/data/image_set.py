"""An image data set in memory: its images, its classes, and the classes of each split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metarun.data.cache import CachedDataset
from metarun.data.image_spec import ImageSpec
from metarun.errors import UserError

MIN_VARIANCE = 1e-6  # so that a constant channel is not divided by zero


@dataclass(frozen=True)
class ImageSet:
    """Images sorted by class, as uint8, and the split of the classes."""

    images: np.ndarray  # uint8 [N, channels, height, width]
    first: np.ndarray  # int64 [classes]: index of each class's first image
    count: np.ndarray  # int64 [classes]: images of each class
    names: tuple[str, ...]  # [classes]
    splits: dict[str, np.ndarray]  # "train", "val", "test" -> int64 class numbers; the splits share no class
    class_split: str  # name of the split, recorded in every result
    spec: ImageSpec  # size and channels of `images`
    mean: tuple[float, ...]  # [channels], of pixels in [0, 1], over the training classes
    std: tuple[float, ...]  # [channels], standard deviation, likewise
    rotations: bool = False  # a class turned by 90, 180, 270 degrees counts as three more classes
    distinct: bool = False  # with rotations: a task has no two rotations of one class
    any_size: bool = False  # classes with too few images for a task are left out, not refused


def image_set(
    cached: CachedDataset,
    spec: ImageSpec,
    splits: Mapping[str, Sequence[str]],
    class_split: str,
    rotations: bool = False,
) -> ImageSet:
    """Image set of cached images, with the class names that `splits` lists for each split.

    Raises:
        UserError: no image of the training classes could be read.
    """
    manifest = cached.manifest
    number = {name: i for i, name in enumerate(manifest.names)}
    classes = {part: np.sort(np.array([number[name] for name in names], np.int64)) for part, names in splits.items()}
    count = np.array(manifest.count, np.int64)
    train = classes["train"]
    total = count[train].sum() * spec.size**2
    if not total:
        raise UserError(f"{manifest.source}: no picture of the training classes can be read; {cached.path} says why")
    mean = np.array(manifest.sums)[train].sum(0) / total
    square = np.array(manifest.squares)[train].sum(0) / total
    return ImageSet(
        images=cached.images,
        first=np.array(manifest.first, np.int64),
        count=count,
        names=tuple(manifest.names),
        splits=classes,
        class_split=class_split,
        spec=spec,
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt((square - mean**2).clip(min=MIN_VARIANCE)).tolist()),
        rotations=rotations,
    )
