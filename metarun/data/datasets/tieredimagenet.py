"""tieredImageNet: 608 classes of ImageNet, split by superclass (Ren et al. 2018, arXiv 1803.00676)."""

from functools import partial

from metarun.data.datasets.published import PublishedDataset, published_class_folders
from metarun.data.formats.arrays import npz_files, png_pickles
from metarun.data.formats.hdf5 import hdf5_files
from metarun.data.formats.image_folders import split_folders
from metarun.data.image_spec import ImageSpec

NAMES = ("tiered-imagenet", "tiered_imagenet", "tieredimagenet", "tieredImageNet", "tieredImagenet")
TIERED_IMAGENET = PublishedDataset(
    name="tieredimagenet",
    spec=ImageSpec(size=84, channels=3),
    folders=NAMES,
    detectors=(
        png_pickles,
        npz_files,
        hdf5_files,
        split_folders,
        partial(published_class_folders, dataset="tieredimagenet"),
    ),
    archives=NAMES,
    remedy="one of these, or tiered-imagenet.tar with one inside: {train,val,test}_images_png.pkl and _labels.pkl; "
    "{train,val,test}_images.npz and _labels.pkl; {train,val,test}_data.hdf5 and _labels.json; "
    "{train,val,test}/CLASS/*.jpg; CLASS/*.jpg "
    "(it has no lasting public address, so download=true does not fetch it)",
)
