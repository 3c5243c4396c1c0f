"""Checkpoints with a right digest whose content no run would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from metarun.checkpointing import file_format, store


def changed(path: Path, *places: str, value: Any = None, **tensors: Tensor) -> Path:
    """Set the entry of a checkpoint's JSON at `places` to `value`, and tensors by PART/NAME, with __ for the slash."""
    content, saved = file_format.read(path)
    node = content
    for place in places[:-1]:
        node = node[place]
    if places:
        node[places[-1]] = value
    saved.update({name.replace("__", "/"): tensor for name, tensor in tensors.items()})
    path.write_bytes(file_format.encode(content, saved))
    return path


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON and tensors of a checkpoint."""
    return file_format.read(store.resolve_checkpoint(path))
