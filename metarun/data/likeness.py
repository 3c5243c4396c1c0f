"""What a data set's pictures look like, in plain numbers: enough to bring anyone's into the same form without it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from metarun.data.images import ImageSet
from metarun.data.look import Look
from metarun.data.sampler import ImageSource
from metarun.data.source import Source

LARGEST = 4096  # pixels, high and wide


def of(source: Source) -> dict[str, Any] | None:
    """The likeness of a source's pictures as a checkpoint holds it; None where it has none, as for curves."""
    if not isinstance(source, ImageSource):
        return None
    return {
        **asdict(source.set.look),
        "normalise": source.normalise,
        "mean": list(source.set.mean),
        "deviation": list(source.set.deviation),
    }


def source_like(likeness: Any, device: torch.device) -> ImageSource:
    """A source of the same form that holds no images, so that it draws nothing.

    Raises:
        ValueError: what was given is no likeness; the message says why.
    """
    if not isinstance(likeness, dict):
        raise ValueError(f"a dict is wanted, found {type(likeness).__name__}")
    look = Look(*(whole(likeness, key) for key in ("size", "channels")), inverted=boolean(likeness, "inverted"))
    if not 0 < look.size <= LARGEST or look.channels not in (1, 3):
        raise ValueError(f"{look.channels} channels of {look.size}x{look.size} pixels")
    mean, deviation = (numbers(likeness, key, look.channels) for key in ("mean", "deviation"))
    normalise = boolean(likeness, "normalise")
    if normalise and min(deviation) <= 0:
        raise ValueError(f"deviation {list(deviation)}")
    none = np.zeros(0, np.int64)
    empty = np.zeros((0, look.channels, look.size, look.size), np.uint8)
    return ImageSource(ImageSet(empty, none, none, (), {}, "", look, mean, deviation), device, normalise)


def whole(likeness: dict[str, Any], key: str) -> int:
    value = likeness.get(key)
    if type(value) is not int:
        raise ValueError(f"{key} {value!r} is no whole number")
    return value


def boolean(likeness: dict[str, Any], key: str) -> bool:
    value = likeness.get(key)
    if type(value) is not bool:
        raise ValueError(f"{key} {value!r} is neither true nor false")
    return value


def numbers(likeness: dict[str, Any], key: str, count: int) -> tuple[float, ...]:
    values = likeness.get(key)
    if not isinstance(values, list) or len(values) != count or not all(is_number(value) for value in values):
        raise ValueError(f"{key} {values!r} is not a number for each of {count} channels")
    return tuple(values)


def is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
