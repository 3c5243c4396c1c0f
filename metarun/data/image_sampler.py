"""N-way K-shot tasks drawn from an image set."""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metarun.data.augment import augment_images
from metarun.data.image_set import ImageSet
from metarun.data.random_numbers import augmentation_noise, philox_words, sample_without_replacement
from metarun.data.task_sampler import SPLITS, TaskShape
from metarun.errors import UserError
from metarun.metrics import ACCURACY
from metarun.types import Task
from metarun.utils.text import pluralize

log = logging.getLogger(__name__)

MAX_LISTED = 5  # classes listed in a warning
NUM_ROTATIONS = 4  # 0, 90, 180, 270 degrees
MAX_DEVICE_BYTES = 2**32  # a larger set stays memory-mapped; only its tasks' images are copied to the GPU


class ImageTaskSampler:
    """Draws N-way K-shot tasks from an image set, held on the device as uint8, or memory-mapped if it is too large.

    A task's classes, and each class's images, are drawn without replacement: support and query share no image.

    Args:
        normalise: standardise each channel by its mean and standard deviation over the training classes.
        augment: names of the augmentations of training tasks' images, see `augment.NAMES`.
    """

    metric = ACCURACY.name
    is_classification = True

    def __init__(
        self, image_set: ImageSet, device: torch.device, normalise: bool = False, augment: Sequence[str] = ()
    ) -> None:
        self.image_set, self.device, self.augment = image_set, device, tuple(augment)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and metarun never writes to it
            self.images = torch.from_numpy(image_set.images)
        if image_set.images.nbytes <= MAX_DEVICE_BYTES:
            self.images = self.images.to(device)
        self.mean, self.std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (image_set.mean, image_set.std)
        )
        self.normalise = normalise
        self.input_shape: tuple[int, ...] = tuple(image_set.images.shape[1:])
        self.class_split: str | None = image_set.class_split
        self.num_rotations = NUM_ROTATIONS if image_set.rotations else 1
        self.rotations_as_classes = (
            1 if image_set.distinct else self.num_rotations
        )  # rotations of one class that are different classes of a task

    def check(self, split: str, shape: TaskShape, names: Sequence[str] = TaskShape._fields) -> None:
        """Raises UserError if the split has fewer classes than `ways` or a class fewer images than shots + queries.

        Args:
            names: the keys that set ways, shots and queries, for the message.
        """
        ways, shots, queries = names
        classes = self.classes(split, shape)
        small = len(self.image_set.splits[split]) - len(classes)
        if self.image_set.any_size:
            self.log_classes(split, shape)
        available = len(classes) * self.rotations_as_classes
        if shape.ways > available:
            most = min(len(self.classes(part, shape)) for part in self.image_set.splits) * self.rotations_as_classes
            raise UserError(
                f"{ways}={shape.ways}: the {split} split ({self.class_split}) has {available} classes"
                f"{f' with enough pictures, {small} have too few' if small else ''}; "
                f"{most} is the most that every split can fill"
            )
        smallest = classes[self.image_set.count[classes].argmin()]
        images = int(self.image_set.count[smallest])
        if shape.shots + shape.queries > images:
            raise UserError(
                f"{shots}={shape.shots} + {queries}={shape.queries} make {shape.shots + shape.queries} images a class: "
                f"class {self.image_set.names[smallest]!r} of the {split} split has {images}; lower one of the two"
            )

    def classes(self, split: str, shape: TaskShape) -> np.ndarray:
        """Class numbers, int64 [classes], that tasks of this shape are drawn from."""
        classes = self.image_set.splits[split]
        return (
            classes[self.image_set.count[classes] >= shape.shots + shape.queries]
            if self.image_set.any_size
            else classes
        )

    def log_classes(self, split: str, shape: TaskShape) -> None:
        """Log the number of classes and images that tasks are drawn from, and warn of classes that are too small."""
        count, needed = self.image_set.count, shape.shots + shape.queries
        classes, used = self.image_set.splits[split], self.classes(split, shape)
        pictures = pluralize(int(count[used].sum()), "picture")
        log.info("%s split: %s, %s", split, pluralize(len(used), "class", "classes"), pictures)
        small = sorted(set(classes.tolist()) - set(used.tolist()), key=lambda i: -count[i])
        if small:
            names = ", ".join(f"{self.image_set.names[i]!r} ({count[i]})" for i in small[:MAX_LISTED])
            log.warning(
                "%d of %d classes of the %s split are left out: fewer than %d images (shots + queries), as %s%s",
                *(len(small), len(classes), split, needed, names, ", ..." if len(small) > MAX_LISTED else ""),
            )

    def num_outputs(self, ways: int) -> int:
        return ways

    @property
    def num_training_classes(self) -> int:
        """Number of training classes, counting each rotation as a class."""
        return len(self.image_set.splits["train"]) * self.num_rotations

    def draw(self, seed: int, split: str, first: int, count: int, shape: TaskShape) -> Task:
        """Images as float32, [count, ways * images, channels, height, width]; labels 0 .. ways - 1."""
        ways, each = shape.ways, shape.shots + shape.queries
        image_stream = 2 * SPLITS.index(split) + 1  # the stream before it draws the classes
        classes, quarter_turns = self.draw_classes(seed, split, first, count, shape)
        classes = classes.ravel()
        positions = sample_without_replacement(
            philox_words(seed, image_stream, first, count, 2 * ways * each).reshape(count * ways, -1),
            self.image_set.count[classes],
        )  # [count * ways, each]
        index = self.image_set.first[classes][:, None] + positions
        random = None
        if self.augment and split == "train":
            random = augmentation_noise(seed, first, count, ways * each).view(count * ways, each, -1)
        images = self.network_inputs(index, quarter_turns.ravel(), random)
        images = images.unflatten(0, (count, ways))  # [count, ways, each, channels, height, width]
        support, query = images.split([shape.shots, shape.queries], dim=2)
        labels = torch.arange(ways, device=images.device).expand(count, ways)
        return Task(
            support.flatten(1, 2),
            labels.repeat_interleave(shape.shots, dim=1),
            query.flatten(1, 2),
            labels.repeat_interleave(shape.queries, dim=1),
        )

    def draw_classes(
        self, seed: int, split: str, first: int, count: int, shape: TaskShape
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class numbers and quarter turns of the tasks of `draw`, each int64 [count, ways] in label order."""
        classes, turns = self.classes(split, shape), self.rotations_as_classes
        each = 2 * shape.ways  # random words for the classes; the words after them choose the rotations
        drawn = philox_words(seed, 2 * SPLITS.index(split), first, count, each + shape.ways * self.image_set.distinct)
        number = sample_without_replacement(drawn[:, :each], np.full(count, len(classes) * turns))
        if self.image_set.distinct:
            return classes[number], (drawn[:, each:] % np.uint64(self.num_rotations)).astype(np.int64)
        return classes[number // turns], number % turns

    def network_inputs(self, index: np.ndarray, quarters: np.ndarray, random: Tensor | None) -> Tensor:
        """Network inputs, float32 [rows, each, channels, height, width].

        Args:
            index: [rows, each], image numbers.
            quarters: [rows], the quarter turns by which a row's images are rotated.
            random: [rows, each, AUGMENTATION_NUMBERS] in [0, 1) for the augmentations; None: no augmentation.
        """
        images = self.images[torch.from_numpy(index).to(self.images.device)].to(self.device).float().div_(255)
        images = self.rotate(images, quarters)
        if random is not None:
            changes = random.to(self.device).flatten(0, 1)
            images = augment_images(images.flatten(0, 1), changes, self.augment).view_as(images)
        return self.normalise_images(images)

    def normalise_images(self, images: Tensor) -> Tensor:
        """Network inputs of images [..., channels, height, width] in [0, 1]: standardised if `normalise` is set."""
        return (images - self.mean) / self.std if self.normalise else images

    def to_uint8(self, inputs: Tensor) -> Tensor:
        """Inverse of `normalise_images`, for display: network inputs -> uint8 images of the same shape."""
        images = inputs * self.std + self.mean if self.normalise else inputs
        return images.mul(255).round().clamp(0, 255).byte()

    def rotate(self, images: Tensor, quarters: np.ndarray) -> Tensor:
        """Images [rows, each, channels, height, width], rotated in place by `quarters` [rows] quarter turns."""
        for quarter in range(1, self.num_rotations):
            rows = torch.from_numpy(np.flatnonzero(quarters == quarter)).to(images.device)
            images[rows] = torch.rot90(images[rows], quarter, (-2, -1))
        return images
