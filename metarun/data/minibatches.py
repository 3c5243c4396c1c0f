"""Mini-batches of images from all training classes, for pretraining a classifier."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from metarun.data.image_sampler import ImageTaskSampler
from metarun.data.random_numbers import BATCH_STREAM, augmentation_noise, permutation


def minibatches(source: ImageTaskSampler, seed: int, first: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Mini-batches number first .. first + count - 1: [count, size, channels, height, width], labels [count, size].

    Each training image passes by once an epoch, in an order of that epoch's own; where a class turned by 90 degrees is
    another class, at each of its turns. A mini-batch is a function of (seed, its number, size).
    """
    classes, turns = source.image_set.splits["train"], source.num_rotations
    each = source.image_set.count[classes].repeat(turns)  # images of the class that label l stands for
    ends = each.cumsum()
    epoch, place = np.divmod(np.arange(first * size, (first + count) * size), ends[-1])
    drawn = np.concatenate(
        [epoch_order(seed, number, int(ends[-1]))[place[epoch == number]] for number in range(epoch[0], epoch[-1] + 1)]
    )
    label = np.searchsorted(ends, drawn, side="right")
    index = source.image_set.first[classes[label // turns]] + drawn - (ends - each)[label]
    random = augmentation_noise(seed, first, count, size).flatten(0, 1)[:, None] if source.augment else None
    images = source.network_inputs(index[:, None], label % turns, random)
    labels = torch.from_numpy(label).to(images.device)
    return images.squeeze(1).unflatten(0, (count, size)), labels.view(count, size)


@lru_cache(maxsize=2)  # a mini-batch may end one epoch and begin the next
def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    return permutation(seed, BATCH_STREAM, epoch, images)
