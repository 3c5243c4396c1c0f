"""N-way K-shot tasks drawn from an image set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metarun.data.counter import distinct, words
from metarun.data.images import ImageSet
from metarun.data.source import SPLITS, Shape
from metarun.errors import UserError
from metarun.task import Task

TURNS = 4  # by 0, 90, 180, 270 degrees


class ImageSource:
    """Draws tasks from an image set that lies on `device` once, as uint8.

    A task's classes, and the images of each, are drawn without replacement: support and query never share one.
    """

    metric = "accuracy"

    def __init__(self, image_set: ImageSet, device: torch.device) -> None:
        self.set = image_set
        self.images = torch.from_numpy(image_set.images).to(device)
        self.input_shape: tuple[int, ...] = tuple(image_set.images.shape[1:])
        self.class_split: str | None = image_set.class_split
        self.turns = TURNS if image_set.rotations else 1

    def check(self, split: str, shape: Shape, names: Sequence[str] = Shape._fields) -> None:
        """Raises UserError where `ways` or `shots` + `queries`, by their `names`, ask for more than the split holds."""
        ways, shots, queries = names
        classes = self.set.splits[split]
        available = len(classes) * self.turns
        if shape.ways > available:
            most = min(len(part) for part in self.set.splits.values()) * self.turns
            raise UserError(
                f"{ways}={shape.ways}: the {split} split ({self.class_split}) has {available} classes; "
                f"{most} is the most that every split can fill"
            )
        smallest = classes[self.set.count[classes].argmin()]
        images = int(self.set.count[smallest])
        if shape.shots + shape.queries > images:
            raise UserError(
                f"{shots}={shape.shots} + {queries}={shape.queries} make {shape.shots + shape.queries} images a class: "
                f"class {self.set.names[smallest]!r} of the {split} split has {images}; lower one of the two"
            )

    def outputs(self, ways: int) -> int:
        return ways

    def draw(self, seed: int, split: str, first: int, count: int, shape: Shape) -> Task:
        """Images as float32 in [0, 1], [count, ways * images, channels, height, width]; labels 0 .. ways - 1."""
        classes = self.set.splits[split]
        ways, each = shape.ways, shape.shots + shape.queries
        class_stream, image_stream = 2 * SPLITS.index(split), 2 * SPLITS.index(split) + 1
        number = distinct(
            words(seed, class_stream, first, count, 2 * ways), np.full(count, len(classes) * self.turns)
        )  # [count, ways]
        chosen = classes[number // self.turns].ravel()
        place = distinct(
            words(seed, image_stream, first, count, 2 * ways * each).reshape(count * ways, -1), self.set.count[chosen]
        )  # [count * ways, each]
        index = self.set.first[chosen][:, None] + place
        images = self.images[torch.from_numpy(index).to(self.images.device)].float().div_(255)
        images = self.turn(images, (number % self.turns).ravel())
        images = images.unflatten(0, (count, ways))  # [count, ways, each, channels, height, width]
        support, query = images.split([shape.shots, shape.queries], dim=2)
        label = torch.arange(ways, device=images.device).expand(count, ways)
        return Task(
            support.flatten(1, 2),
            label.repeat_interleave(shape.shots, dim=1),
            query.flatten(1, 2),
            label.repeat_interleave(shape.queries, dim=1),
        )

    def turn(self, images: Tensor, quarters: np.ndarray) -> Tensor:
        """Each class's images [classes, each, channels, height, width] turned by its number of quarter circles."""
        for quarter in range(1, self.turns):
            rows = torch.from_numpy(np.flatnonzero(quarters == quarter)).to(images.device)
            images[rows] = torch.rot90(images[rows], quarter, (-2, -1))
        return images
