"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from metarun.data.cache import cached
from metarun.data.images import ImageSet
from metarun.data.omniglot_files import Drawing, Reader, find
from metarun.data.omniglot_splits import BACKGROUND, EVALUATION, SPLITS, characters
from metarun.errors import UserError

log = logging.getLogger(__name__)

VERSION = 1  # raised whenever the same files would give other pixels: it names the cached file
SIZE = 28  # pixels
DRAWINGS = 20  # of each character


def load(data_dir: Path, cache_dir: Path, split: str, rotations: bool, download: bool) -> ImageSet:
    """Omniglot from its archives or folders below data_dir: uint8 [N, 1, 28, 28], ink = 255.

    Args:
        split: "vinyals", "maml" or "lake"; see `omniglot_splits`.
        rotations: passed on; the sampler turns a class, which stays in its character's split.
        download: fetch what is missing into data_dir.

    Raises:
        UserError: files are missing, damaged or not to be fetched; cache_dir cannot be written.
    """
    drawings = known(find(data_dir, download))
    parts = SPLITS[split]()
    names, first, count = np.unique([drawing.name for drawing in drawings], return_index=True, return_counts=True)
    number = {str(name): i for i, name in enumerate(names)}
    if (count < DRAWINGS).any():
        short = int((count < DRAWINGS).sum())
        log.warning("%d characters have fewer than %d drawings, first %r", short, DRAWINGS, names[count < DRAWINGS][0])
    lacking = [name for part in parts.values() for name in part if name not in number]
    if lacking:
        raise UserError(
            f"data_dir={data_dir}: dataset.split={split} needs {len(lacking)} characters that are not there, "
            f"first {lacking[0]!r}; put back the missing folders or the whole archives"
        )
    path = cache_dir / f"omniglot-v{VERSION}-{fingerprint(drawings)}.npy"
    sizes = "/".join(str(len(part)) for part in parts.values())
    return ImageSet(
        images=cached(path, (len(drawings), 1, SIZE, SIZE), lambda: decode(drawings)),
        first=first.astype(np.int64),
        count=count.astype(np.int64),
        names=tuple(number),
        splits={part: np.sort(np.array([number[name] for name in parts[part]], np.int64)) for part in parts},
        class_split=f"omniglot-{split}-{sizes}{'-rotated' if rotations else ''}",
        rotations=rotations,
    )


def known(drawings: list[Drawing]) -> list[Drawing]:
    """Only drawings of Omniglot's own characters: no split says where others belong."""
    ours = set(characters(BACKGROUND | EVALUATION))
    others = sorted({drawing.name for drawing in drawings} - ours)
    if others:
        log.warning("%d characters that Omniglot does not have are left out, first %r", len(others), others[0])
    return [drawing for drawing in drawings if drawing.name in ours]


def fingerprint(drawings: list[Drawing]) -> str:
    """16 hexadecimal digits that change with any drawing's name or content."""
    lines = (f"{drawing.name}/{drawing.file} {drawing.stamp}\n" for drawing in drawings)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def decode(drawings: list[Drawing]) -> np.ndarray:
    """uint8 [drawings, 1, SIZE, SIZE]; the files' black ink on white becomes 255 on 0."""
    images = np.empty((len(drawings), 1, SIZE, SIZE), np.uint8)
    with Reader() as reader:
        for i, drawing in enumerate(tqdm(drawings, desc="reading Omniglot", unit="image", disable=None, leave=False)):
            try:
                with Image.open(io.BytesIO(reader.read(drawing))) as picture:
                    grey = picture.convert("L").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            except UserError:
                raise
            except Exception as error:  # Pillow and zipfile raise many kinds for damaged bytes
                raise UserError(
                    f"{drawing.source / drawing.member}: cannot be read as an image ({cause(error)}); "
                    "put back the file or the whole archive"
                ) from error
            images[i, 0] = 255 - np.asarray(grey)
    return images


def cause(error: Exception) -> str:
    """What an error says, but for Pillow's, which names an address in memory."""
    return "not in a form that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
