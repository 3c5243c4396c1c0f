"""tieredImageNet: 608 classes of ImageNet, divided by what they are kinds of (Ren et al. 2018, arXiv 1803.00676)."""

from __future__ import annotations

from functools import partial

from metarun.data.arrays import hdf5_files
from metarun.data.images import ImageSet
from metarun.data.known import Known, known_folders
from metarun.data.known import load as load_known
from metarun.data.look import Look
from metarun.data.on_disk import Places
from metarun.data.tiered_files import npz_files, png_pickles
from metarun.data.trees import split_folders

NAMES = ("tiered-imagenet", "tiered_imagenet", "tieredimagenet", "tieredImageNet", "tieredImagenet")
KNOWN = Known(
    dataset="tieredimagenet",
    look=Look(size=84, channels=3),
    folders=NAMES,
    finders=(png_pickles, npz_files, hdf5_files, split_folders, partial(known_folders, dataset="tieredimagenet")),
    archives=NAMES,
    remedy="one of these, or tiered-imagenet.tar with one inside: {train,val,test}_images_png.pkl and _labels.pkl; "
    "{train,val,test}_images.npz and _labels.pkl; {train,val,test}_data.hdf5 and _labels.json; "
    "{train,val,test}/CLASS/*.jpg; CLASS/*.jpg "
    "(it has no lasting public address, so download=true does not fetch it)",
)


def load(places: Places, split: str, look: Look | None = None) -> ImageSet:
    """tieredImageNet, from any form below data_dir: uint8 [779165, 3, 84, 84].

    Raises:
        UserError: files are missing or damaged; cache_dir cannot be written.
    """
    return load_known(KNOWN, places, split, look)
