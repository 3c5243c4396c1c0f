"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from metarun.data.cache import Contents, fingerprint, load_or_build_cache
from metarun.data.datasets.omniglot_splits import BACKGROUND, EVALUATION, SPLITS, characters
from metarun.data.formats.detect import DataPaths
from metarun.data.formats.omniglot import Drawing, Reader, find
from metarun.data.image_set import ImageSet, image_set
from metarun.data.image_spec import ImageSpec
from metarun.errors import UserError, relative_to_cwd

log = logging.getLogger(__name__)

VERSION = 1  # raised whenever the same files would give other pixels: it names the cached file
LOOK = ImageSpec(size=28, channels=1, inverted=True)
DRAWINGS = 20  # of each character


def load(
    places: DataPaths, split: str, rotations: bool, rotations_of: str = "classes", look: ImageSpec = LOOK
) -> ImageSet:
    """Omniglot from its archives or folders below data_dir: uint8 [N, 1, 28, 28], ink = 255.

    Args:
        split: "vinyals", "maml" or "lake"; see `omniglot_splits`.
        rotations: passed on; the sampler turns a class, which stays in its character's split.
        rotations_of: "classes", each turn is a class; "tasks": a task draws different characters and turns each.
        look: of the pictures, for a network that learned others.

    Raises:
        UserError: files are missing, damaged or not to be fetched; cache_dir cannot be written.
    """
    drawings = known(find(places.data_dir, places.download))
    parts = SPLITS[split]()
    names, labels, count = np.unique([d.name for d in drawings], return_inverse=True, return_counts=True)
    if (count < DRAWINGS).any():
        short = int((count < DRAWINGS).sum())
        log.warning(
            "%d characters have fewer than %d drawings, first %r", short, DRAWINGS, str(names[count < DRAWINGS][0])
        )
    there = set(names.tolist())
    lacking = [name for part in parts.values() for name in part if name not in there]
    if lacking:
        raise UserError(
            f"data_dir={relative_to_cwd(places.data_dir)}: dataset.split={split} needs "
            f"{len(lacking)} characters that are not there, "
            f"first {lacking[0]!r}; put back the missing folders or the whole archives"
        )

    def contents(stack: ExitStack) -> Contents:
        reader = stack.enter_context(Reader())
        images = ((str(drawing.source / drawing.member), reader.read(drawing)) for drawing in drawings)
        return Contents(names.tolist(), labels, images)

    other = () if look == LOOK else (look,)
    stamp = fingerprint(VERSION, *other, *(f"{drawing.name}/{drawing.file} {drawing.stamp}" for drawing in drawings))
    found = load_or_build_cache(places.cache_dir, f"omniglot-{stamp}", look, places.data_dir, contents)
    sizes = "/".join(str(len(part)) for part in parts.values())
    distinct = rotations and rotations_of == "tasks"
    turned = "-rotated-in-tasks" if distinct else "-rotated" if rotations else ""
    return replace(image_set(found, look, parts, f"omniglot-{split}-{sizes}{turned}", rotations), distinct=distinct)


def known(drawings: list[Drawing]) -> list[Drawing]:
    """Only drawings of Omniglot's own characters: no split says where others belong."""
    ours = set(characters(BACKGROUND | EVALUATION))
    others = sorted({drawing.name for drawing in drawings} - ours)
    if others:
        log.warning("%d characters that Omniglot does not have are left out, first %r", len(others), others[0])
    return [drawing for drawing in drawings if drawing.name in ours]
