"""The choices of `dataset=`, `backbone=` and `method=`: a dataclass of keys for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Any = None,
    pattern: str = "",
    several: type | None = None,
) -> Any:
    """A dataclass field for a configuration key.

    Args:
        default: the default value; "???" for a key that must be given.
        help: one phrase for `--help` and docs/keys.md.
        least, most: inclusive bounds of a number, or of each number of a list.
        above: exclusive lower bound.
        choices: the allowed values.
        pattern: regular expression that text must match as a whole.
        several: type of one value of a key that also takes a list; the field is then annotated Any.
    """
    metadata = {"help": help, "least": least, "above": above, "most": most, "choices": choices, "pattern": pattern}
    metadata["several"] = several
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


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
    name: str = "mlp"
    hidden: list[int] = option([40, 40], "widths of the hidden layers; []: a linear model", least=1, most=10**5)


@dataclass
class Conv4:
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
    name: str = "resnet12"
    filters: list[int] = option([64, 128, 256, 512], "output channels of each of the four stages", least=1, most=10**5)
    activation: str = option("relu", "activation function; leaky_relu has slope 0.1", choices=("relu", "leaky_relu"))
    pools: int = option(3, "number of stages that end in 2x2 max-pooling", least=0, most=4)
    norm: str = option("batch", "normalisation layer", choices=NORM_TYPES)


@dataclass
class Torchvision:
    name: str = "torchvision"
    network: str = option("resnet18", "torchvision's name of a classification model")


# any_step: evaluation may take more inner steps than training. Not so for methods that learn rates or warps for the
# trained steps, which may diverge after them.


@dataclass
class Maml:
    name: str = "maml"
    any_step: ClassVar[bool] = True


@dataclass
class Fomaml:
    name: str = "fomaml"
    any_step: ClassVar[bool] = True


@dataclass
class Msgd:
    name: str = "msgd"
    alpha: str = option("element", "one learned rate for each of these", choices=("element", "tensor", "scalar"))
    start: str = option(
        "rate",
        "initial rates: inner_learning_rate (rate), or one sample of U[0.005, 0.1] (random)",
        choices=("rate", "random"),
    )


@dataclass
class Mtnet:
    name: str = "mtnet"
    mask: bool = option(True, "learn masks of the inner gradient; false: T-net")
    full: bool = option(
        False, "sample a mask entry for each weight at each inner step, instead of one for each output unit"
    )


@dataclass
class Warpgrad:
    name: str = "warpgrad"
    objective: str = option(
        "warp_maml", "meta-objective of the warp layers", choices=("warp_maml", "trajectory", "unrolled")
    )
    initialisation: str = option(
        "leap",
        "trajectory: the initialisation is learned by Leap (leap), or stays fixed (frozen)",
        choices=("leap", "frozen"),
    )
    approximate: bool = option(False, "omit the derivative through the look-ahead step (equation 12)")
    start: str = option(
        "reference",
        "initial warp layers: random as in the reference code (reference), or the identity (identity)",
        choices=("reference", "identity"),
    )
    after: list[str] | None = option(None, "names of the modules that a warp layer follows; null: every block")
    depth: int = option(1, "number of layers of a warp", least=1, most=100)
    kernel: int = option(3, "kernel size of warp convolutions, an odd number", least=1, most=999)
    norm: bool = option(False, "batch norm before each convolution of a warp, and after the sum of a residual layer")
    activation: bool = option(False, "ReLU after each convolution of a warp")
    residual: bool = option(False, "residual connection around each layer of a warp")


@dataclass
class L2f:
    name: str = "l2f"
    any_step: ClassVar[bool] = True


@dataclass
class Anil:
    name: str = "anil"
    any_step: ClassVar[bool] = True


@dataclass
class Boil:
    name: str = "boil"
    any_step: ClassVar[bool] = True


@dataclass
class Pretrain:
    name: str = "pretrain"
    batch: int = option(
        32, "images per mini-batch; an outer step averages over meta_batch mini-batches", least=2, most=10**5
    )


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
    "method": {
        "maml": Maml,
        "fomaml": Fomaml,
        "msgd": Msgd,
        "mtnet": Mtnet,
        "warpgrad": Warpgrad,
        "l2f": L2f,
        "anil": Anil,
        "boil": Boil,
        "pretrain": Pretrain,
    },
}

FORMS: dict[str, dict[str, Any]] = {  # configs/ choices that are another choice with these values
    "conv4_strided": {"name": "conv4", "downsample": "stride"},
    "conv4_narrow": {"name": "conv4", "filters": 32},
    "resnet12_wide": {
        **{"name": "resnet12", "filters": [64, 160, 320, 640]},
        **{"activation": "leaky_relu", "pools": 4},
    },
}


def choice_name(node: Any) -> str:
    """Name under which a config is chosen: "conv4_strided" for a Conv4 with stride, else `node.name`."""
    return next(
        (form for form, own in FORMS.items() if all(getattr(node, key, None) == value for key, value in own.items())),
        node.name,
    )
