"""The choices of `dataset=`, `backbone=` and `method=`: a dataclass of keys for each."""

from dataclasses import dataclass
from typing import Any

from metarun.config.methods import METHODS
from metarun.config.options import option

NORM_TYPES = ("batch", "layer", "instance", "group", "none")
OWN_SPLIT = "a JSON file with lists of class names for train, val and test"


@dataclass
class Glyphs:
    name: str = "glyphs"
    seed: int = option(0, "seed of the generated alphabets", least=0, most=2**63 - 1)


@dataclass
class Omniglot:
    name: str = "omniglot"
    split: str = option("vinyals", "class split", choices=("vinyals", "maml", "lake"))
    rotations: bool = option(True, "rotate characters by 0, 90, 180 or 270 degrees")
    rotations_of: str = option(
        "classes",
        "each rotation of a character is a class of its own (classes), or each task samples different characters "
        "and rotates each (tasks), as in the code of MAML and MT-net",
        choices=("classes", "tasks"),
    )


@dataclass
class ImageDatasetConfig:
    """Keys that all data sets of photographs share."""

    normalise: bool = option(
        False, "standardise each colour channel by its mean and standard deviation over the training classes"
    )
    augment: list[str] = option([], "random augmentations of training images", choices=("crop", "flip", "jitter"))


@dataclass
class CifarFs(ImageDatasetConfig):
    name: str = "cifar_fs"
    split: str = option("bertinetto", f"class split, or {OWN_SPLIT}")


@dataclass
class Fc100(ImageDatasetConfig):
    name: str = "fc100"
    split: str = option("oreshkin", f"class split, or {OWN_SPLIT}")


@dataclass
class MiniImagenet(ImageDatasetConfig):
    name: str = "miniimagenet"
    split: str = option("ravi", f"class split (ravi, vinyals), or {OWN_SPLIT}")


@dataclass
class TieredImagenet(ImageDatasetConfig):
    name: str = "tieredimagenet"
    split: str = option("ren", f"class split, or {OWN_SPLIT}")


@dataclass
class Cub(ImageDatasetConfig):
    name: str = "cub"
    split: str = option("closerlook", f"class split, or {OWN_SPLIT}")


@dataclass
class Folder(ImageDatasetConfig):
    name: str = "folder"
    root: str = option(
        "???",
        "folder of class folders, folder with train/, val/ and test/ of class folders, or CSV file path,label[,split]",
    )
    size: int = option(64, "height and width in pixels that images are resized to", least=4, most=4096)
    grey: bool = option(False, "convert images to one grey channel")
    seed: int = option(0, "seed of the random class split, if the folder has no split", least=0, most=2**63 - 1)


@dataclass
class Sinusoid:
    name: str = "sinusoid"
    frequency: list[float] = option(
        [1.0, 1.0], "range [LOWEST,HIGHEST] of the frequency; Meta-SGD and MT-net use [0.8,1.2]", above=0
    )


@dataclass
class Mlp:
    """A multilayer perceptron, for vectors and curves."""

    name: str = "mlp"
    hidden: list[int] = option([40, 40], "widths of the hidden layers; []: a linear model", least=1, most=10**5)


@dataclass
class Conv4:
    """Four blocks of convolution, norm, ReLU and max-pool, with a linear head (Vinyals et al. 2016)."""

    name: str = "conv4"
    filters: int = option(64, "output channels of each convolution", least=1, most=10**5)
    bias: bool = option(True, "whether convolutions have a bias")
    norm: str = option("batch", "normalisation layer", choices=NORM_TYPES)
    downsample: str = option(
        "pool",
        "2x2 max-pooling (pool), or stride-2 convolutions and global average pooling (stride)",
        choices=("pool", "stride"),
    )


@dataclass
class Resnet12:
    """ResNet-12 as in L2F, ALFA and MeTAL."""

    name: str = "resnet12"
    filters: list[int] = option([64, 128, 256, 512], "output channels of each of the four stages", least=1, most=10**5)
    activation: str = option("relu", "activation function; leaky_relu has slope 0.1", choices=("relu", "leaky_relu"))
    pools: int = option(3, "number of stages that end in 2x2 max-pooling", least=0, most=4)
    norm: str = option("batch", "normalisation layer", choices=NORM_TYPES)


@dataclass
class Torchvision:
    """A classifier of torchvision with random weights; start=FILE gives others."""

    name: str = "torchvision"
    network: str = option("resnet18", "torchvision's name of a classification model")


CONFIG_GROUPS: dict[str, dict[str, type]] = {
    "dataset": {
        "glyphs": Glyphs,
        "sinusoid": Sinusoid,
        "omniglot": Omniglot,
        "cifar_fs": CifarFs,
        "fc100": Fc100,
        "miniimagenet": MiniImagenet,
        "tieredimagenet": TieredImagenet,
        "cub": Cub,
        "folder": Folder,
    },
    "backbone": {"mlp": Mlp, "conv4": Conv4, "resnet12": Resnet12, "torchvision": Torchvision},
    "method": dict(METHODS),
}

FORMS: dict[str, dict[str, Any]] = {  # choices that are another choice with these values
    "conv4_strided": {"name": "conv4", "downsample": "stride"},  # MAML's for Omniglot's small images
    "conv4_narrow": {"name": "conv4", "filters": 32},  # MAML's for mini-ImageNet
    "resnet12_wide": {  # as in MetaOptNet (Lee et al. 2019)
        **{"name": "resnet12", "filters": [64, 160, 320, 640]},
        **{"activation": "leaky_relu", "pools": 4},
    },
}


def choices(group: str) -> list[str]:
    """Everything that `group=` takes of metarun's own, sorted."""
    forms = [form for form, values in FORMS.items() if values["name"] in CONFIG_GROUPS[group]]
    return sorted([*CONFIG_GROUPS[group], *forms])


def choice_name(node: Any) -> str:
    """Name under which a config is chosen: "conv4_strided" for a Conv4 with stride, else `node.name`."""
    return next(
        (form for form, own in FORMS.items() if all(getattr(node, key, None) == value for key, value in own.items())),
        node.name,
    )
