"""Counter-based random numbers: functions of (seed, stream, index), independent of other draws and of processes.

Philox is a counter-based generator (Salmon et al. 2011): number n of a key can be had without those before.
"""

import numpy as np
import torch

from metarun.data.task_sampler import SPLITS

WORDS_PER_BLOCK = 4  # Philox makes four words at each count
NOISE_STREAM = 2 * len(SPLITS)  # the streams before it are the samplers'
ORDER_STREAM = NOISE_STREAM + len(SPLITS)
AUGMENT_STREAM = ORDER_STREAM + 1
BATCH_STREAM = AUGMENT_STREAM + 1
AUGMENTATION_NUMBERS = 6  # random numbers that an image's augmentation takes


def philox_words(seed: int, stream: int, first: int, count: int, each: int) -> np.ndarray:
    """Random uint64 [count, each] for the indices first .. first + count - 1 of a stream, in one call."""
    blocks = -(-each // WORDS_PER_BLOCK)
    key = np.array([seed, stream], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=first * blocks)
    return generator.random_raw(count * blocks * WORDS_PER_BLOCK).reshape(count, -1)[:, :each]


def uniform(random_words: np.ndarray, low: float, high: float) -> np.ndarray:
    """Random words -> float64 in [low, high)."""
    return low + (high - low) * (random_words >> np.uint64(11)) * 2.0**-53


def sample_without_replacement(random_words: np.ndarray, population: np.ndarray) -> np.ndarray:
    """Draws without replacement, in random order: uint64 [rows, 2k] and sizes [rows] -> int64 [rows, k].

    Row r holds k different numbers below population[r], which must be k or more. Floyd's algorithm (Bentley
    and Floyd 1987) chooses the set at a cost that does not grow with the population; sorting by the other
    half of the words shuffles it.
    """
    wanted = random_words.shape[1] // 2
    chosen = np.empty((len(random_words), wanted), dtype=np.int64)
    for k in range(wanted):
        largest = population - wanted + k
        drawn = (random_words[:, k] % (largest + 1).astype(np.uint64)).astype(np.int64)
        taken = (chosen[:, :k] == drawn[:, None]).any(axis=1)
        chosen[:, k] = np.where(taken, largest, drawn)
    order = np.argsort(random_words[:, wanted:], axis=1)
    return np.take_along_axis(chosen, order, axis=1)


def permutation(seed: int, stream: int, index: int, count: int) -> np.ndarray:
    """A random permutation of range(count), int64, a function of (seed, stream, index)."""
    return np.argsort(philox_words(seed, stream, index, 1, count)[0], kind="stable")


def permutation_list(seed: int, index: int, count: int) -> list[int]:
    """A random permutation of range(count), a function of (seed, index)."""
    return permutation(seed, ORDER_STREAM, index, count).tolist()


def augmentation_noise(seed: int, first: int, count: int, images: int) -> torch.Tensor:
    """Random numbers that augment training tasks first .. first + count - 1: [count, images, AUGMENTATION_NUMBERS]."""
    drawn = philox_words(seed, AUGMENT_STREAM, first, count, images * AUGMENTATION_NUMBERS)
    return to_unit(drawn).view(count, images, AUGMENTATION_NUMBERS)


def to_unit(drawn: np.ndarray) -> torch.Tensor:
    """Random words -> float32, uniform in [0, 1)."""
    return torch.from_numpy(((drawn >> np.uint64(40)) * 2.0**-24).astype(np.float32))


def method_noise(seed: int, split: str, first: int, count: int, each: int) -> torch.Tensor:
    """Random numbers of a method for tasks first .. first + count - 1: float32 [count, each], uniform in [0, 1)."""
    return to_unit(philox_words(seed, NOISE_STREAM + SPLITS.index(split), first, count, each))
