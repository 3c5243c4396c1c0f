"""What a data set's pictures spec like, in plain numbers: enough to bring anyone's into the same form without it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.image_set import ImageSet
from metarun.data.image_spec import ImageSpec
from metarun.data.task_sampler import TaskSampler

MAX_SIZE = 4096  # pixels, high and wide


@dataclass(frozen=True)
class ImagePreprocessing:
    """The form of a data set's pictures, as a checkpoint holds it."""

    size: int  # pixels, high and wide
    channels: int  # 1 or 3
    inverted: bool  # dark ink on light paper becomes 255 on 0
    normalise: bool  # shift and scale each channel by what follows
    mean: list[float]  # [channels], of pixels from 0 to 1
    deviation: list[float]  # [channels]

    def validate(self) -> None:
        """Raises ValueError where it is none of pictures; the message says why."""
        if not 0 < self.size <= MAX_SIZE or self.channels not in (1, 3):
            raise ValueError(f"its pictures have {self.channels} channels of {self.size}x{self.size} pixels")
        for name in ("mean", "deviation"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise ValueError(f"its pictures' {name} {values} is not a number for each of {self.channels} channels")
        if self.normalise and min(self.deviation) <= 0:
            raise ValueError(f"its pictures' deviation is {self.deviation}, must be greater than 0")


def image_preprocessing(source: TaskSampler) -> ImagePreprocessing | None:
    """The likeness of a source's pictures; None where it has none, as for curves."""
    if not isinstance(source, ImageTaskSampler):
        return None
    images = source.image_set
    return ImagePreprocessing(
        **asdict(images.spec), normalise=source.normalise, mean=[*images.mean], deviation=[*images.std]
    )


def empty_sampler(likeness: ImagePreprocessing, device: torch.device) -> ImageTaskSampler:
    """A source of the same form that holds no images, so that it draws nothing."""
    spec = ImageSpec(likeness.size, likeness.channels, likeness.inverted)
    mean, deviation = tuple(likeness.mean), tuple(likeness.deviation)
    none = np.zeros(0, np.int64)
    empty = np.zeros((0, spec.channels, spec.size, spec.size), np.uint8)
    return ImageTaskSampler(ImageSet(empty, none, none, (), {}, "", spec, mean, deviation), device, likeness.normalise)
