"""mini-ImageNet: 100 classes of ImageNet, 600 pictures each (Vinyals et al. 2016, arXiv 1606.04080)."""

from functools import partial

from metarun.data.datasets.published import PublishedDataset, published_class_folders
from metarun.data.formats.arrays import cache_pickles, category_pickles
from metarun.data.formats.hdf5 import hdf5_files
from metarun.data.formats.image_folders import csv_lists, json_lists, split_folders
from metarun.data.image_spec import ImageSpec

NAMES = ("mini-imagenet", "mini_imagenet", "miniimagenet", "miniImageNet", "miniImagenet", "mini_imagenet_full_size")
MINI_IMAGENET = PublishedDataset(
    name="miniimagenet",
    spec=ImageSpec(size=84, channels=3),
    folders=(*NAMES, "filelists/miniImagenet"),
    detectors=(
        *(cache_pickles, hdf5_files, category_pickles, csv_lists, json_lists, split_folders),
        partial(published_class_folders, dataset="miniimagenet"),
    ),
    archives=NAMES,
    remedy="one of these, or mini-imagenet.tar.gz or .zip with one inside: mini-imagenet-cache-{train,val,test}.pkl; "
    "{train,val,test}_data.hdf5 and _labels.json; miniImageNet_category_split_{train_phase_train,val,test}.pickle; "
    "images/*.jpg and {train,val,test}.csv; {train,val,test}/CLASS/*.jpg; CLASS/*.jpg "
    "(it has no lasting public address, so download=true does not fetch it)",
)
