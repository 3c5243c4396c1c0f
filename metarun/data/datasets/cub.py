"""CUB-200-2011: 11,788 pictures of 200 kinds of birds (Wah et al. 2011), whole, without their bounding boxes."""

from functools import partial
from pathlib import Path

from metarun.data.datasets.published import PublishedDataset, published_class_folders
from metarun.data.formats.detect import FoundFormat
from metarun.data.formats.hdf5 import hdf5_files
from metarun.data.formats.image_folders import json_lists
from metarun.data.image_spec import ImageSpec

ADDRESS = "https://data.caltech.edu/records/65de6-vp158"


def bird_folders(folder: Path) -> FoundFormat | None:
    """Format of class folders: CUB_200_2011/images/NNN.Name/*, images/NNN.Name/* or NNN.Name/*."""
    places = (folder, folder / "images", folder / "CUB_200_2011" / "images")
    return next(filter(None, map(partial(published_class_folders, dataset="cub"), places)), None)


CUB = PublishedDataset(
    name="cub",
    spec=ImageSpec(size=84, channels=3),
    folders=("CUB_200_2011", "CUB-200-2011", "CUB", "cub", "cubirds200", "filelists/CUB"),
    detectors=(bird_folders, json_lists, hdf5_files),
    archives=("CUB_200_2011",),
    remedy=f"CUB_200_2011.tgz from {ADDRESS}, unpacked or not; or {{base,val,novel}}.json; or "
    "{train,val,test}_data.hdf5 and _labels.json (download=true does not fetch it)",
)
