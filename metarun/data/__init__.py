"""The data sets, by the name that `dataset=` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from metarun.data import glyphs, omniglot
from metarun.data.counter import noise, order
from metarun.data.sampler import ImageSource
from metarun.data.sinusoid import SinusoidSource
from metarun.data.source import Shape, Source

__all__ = ["Shape", "Source", "load", "noise", "order"]


def load(name: str, data_dir: Path, cache_dir: Path, download: bool, device: torch.device, **options: Any) -> Source:
    """The data set `name`, ready to draw tasks from on `device`.

    Raises:
        UserError: its files are missing or damaged.
    """
    if name == "sinusoid":
        return SinusoidSource(device=device, **options)
    if name == "glyphs":
        return ImageSource(glyphs.load(cache_dir, **options), device)
    return ImageSource(omniglot.load(data_dir, cache_dir, download=download, **options), device)
