"""Image preprocessing as a checkpoint records it: enough to preprocess other images without the data set."""

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
    """Size, channels and normalisation of the images that a network was trained on."""

    size: int  # pixels, high and wide
    channels: int  # 1 or 3
    inverted: bool  # dark ink on light paper becomes 255 on 0
    normalise: bool  # standardise each channel by `mean` and `deviation`
    mean: list[float]  # [channels], of pixels in [0, 1]
    deviation: list[float]  # [channels], standard deviation

    def validate(self) -> None:
        """Raises ValueError if a field is out of range; the message says which."""
        if not 0 < self.size <= MAX_SIZE or self.channels not in (1, 3):
            raise ValueError(f"its pictures have {self.channels} channels of {self.size}x{self.size} pixels")
        for name in ("mean", "deviation"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise ValueError(f"its pictures' {name} {values} is not a number for each of {self.channels} channels")
        if self.normalise and min(self.deviation) <= 0:
            raise ValueError(f"its pictures' deviation is {self.deviation}, must be greater than 0")


def image_preprocessing(source: TaskSampler) -> ImagePreprocessing | None:
    """Preprocessing of a sampler's images; None if its tasks have no images."""
    if not isinstance(source, ImageTaskSampler):
        return None
    images = source.image_set
    return ImagePreprocessing(
        **asdict(images.spec), normalise=source.normalise, mean=[*images.mean], deviation=[*images.std]
    )


def empty_sampler(likeness: ImagePreprocessing, device: torch.device) -> ImageTaskSampler:
    """Sampler with this preprocessing and no images: it converts images but draws no tasks."""
    spec = ImageSpec(likeness.size, likeness.channels, likeness.inverted)
    mean, deviation = tuple(likeness.mean), tuple(likeness.deviation)
    none = np.zeros(0, np.int64)
    empty = np.zeros((0, spec.channels, spec.size, spec.size), np.uint8)
    return ImageTaskSampler(ImageSet(empty, none, none, (), {}, "", spec, mean, deviation), device, likeness.normalise)
