"""What every image data set is once it has been read: images, classes, and which classes each split holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageSet:
    """Images of many classes, held once as uint8; a class's images stand one after another."""

    images: np.ndarray  # uint8 [N, channels, height, width]
    first: np.ndarray  # int64 [classes]: where each class's images begin
    count: np.ndarray  # int64 [classes]: how many images each class has
    names: tuple[str, ...]  # [classes]
    splits: dict[str, np.ndarray]  # "train", "val", "test" -> int64 class numbers; no class stands in two
    class_split: str  # the name of this division into classes; stands in every result
    rotations: bool = False  # a class turned by 90, 180, 270 degrees counts as three more classes
