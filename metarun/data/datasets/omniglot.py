"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake, Salakhutdinov, Tenenbaum 2015)."""

import logging
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from metarun.data.cache import RawDataset, fingerprint, load_or_build_cache
from metarun.data.datasets.omniglot_splits import BACKGROUND, EVALUATION, SPLITS, characters
from metarun.data.formats.detect import DataPaths
from metarun.data.formats.omniglot import Drawing, find_drawings, iterate_images
from metarun.data.image_set import ImageSet, image_set
from metarun.data.image_spec import ImageSpec
from metarun.data.splits import format_sizes
from metarun.errors import UserError, relative_to_cwd

log = logging.getLogger(__name__)

VERSION = 1  # part of the cached file's name: raise it when the same files give other pixels
SPEC = ImageSpec(size=28, channels=1, inverted=True)
DRAWINGS = 20  # of each character


def load(
    paths: DataPaths, split: str, rotations: bool, rotations_of: str = "classes", spec: ImageSpec = SPEC
) -> ImageSet:
    """Omniglot from its archives or folders below data_dir: images uint8 [N, 1, 28, 28], ink = 255.

    Args:
        split: "vinyals", "maml" or "lake"; see `omniglot_splits`.
        rotations: count each character's rotations by 90, 180 and 270 degrees as classes of the same split.
        rotations_of: "classes": a task may have two rotations of one character; "tasks": it has different
            characters, each rotated at random.
        spec: of the images, for a network that was trained on others.

    Raises:
        UserError: files are missing, damaged or not to be fetched; cache_dir cannot be written.
    """
    drawings = known_drawings(find_drawings(paths.data_dir, paths.download))
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
            f"data_dir={relative_to_cwd(paths.data_dir)}: dataset.split={split} needs "
            f"{len(lacking)} characters that are not there, "
            f"first {lacking[0]!r}; put back the missing folders or the whole archives"
        )

    def contents(stack: ExitStack) -> RawDataset:
        return RawDataset(names.tolist(), labels, iterate_images(drawings, stack))

    other = () if spec == SPEC else (spec,)
    stamp = fingerprint(VERSION, *other, *(f"{drawing.name}/{drawing.file} {drawing.stamp}" for drawing in drawings))
    found = load_or_build_cache(paths.cache_dir, f"omniglot-{stamp}", spec, paths.data_dir, contents)
    distinct = rotations and rotations_of == "tasks"
    turned = "-rotated-in-tasks" if distinct else "-rotated" if rotations else ""
    return replace(
        image_set(found, spec, parts, f"omniglot-{split}-{format_sizes(parts)}{turned}", rotations), distinct=distinct
    )


def known_drawings(drawings: list[Drawing]) -> list[Drawing]:
    """Drawings of Omniglot's characters; others belong to no split and are left out with a warning."""
    ours = set(characters(BACKGROUND | EVALUATION))
    others = sorted({drawing.name for drawing in drawings} - ours)
    if others:
        log.warning("%d characters that Omniglot does not have are left out, first %r", len(others), others[0])
    return [drawing for drawing in drawings if drawing.name in ours]
