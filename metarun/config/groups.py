"""What `dataset=`, `backbone=` and `method=` choose between, and the keys of each choice."""

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
    """A key, its meaning and what it admits: `least` <= value <= `most`, `above` < value, `choices`, a `pattern`.

    several: the type of a value that may also be a list of them, whose annotation is Any.
    """
    metadata = {"help": help, "least": least, "above": above, "most": most, "choices": choices, "pattern": pattern}
    metadata["several"] = several
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


NORM_TYPES = ("batch", "layer", "instance", "group", "none")
OWN_SPLIT = "a JSON file of class names by train, val, test"


# --- groups: what `dataset=`, `backbone=` and `method=` choose between -------------------------------------


@dataclass
class Glyphs:
    name: str = "glyphs"
    seed: int = option(0, "which invented alphabets are drawn", least=0, most=2**63 - 1)


@dataclass
class Omniglot:
    name: str = "omniglot"
    split: str = option("vinyals", "division into classes", choices=("vinyals", "maml", "lake"))
    rotations: bool = option(True, "characters are turned by 0, 90, 180 or 270 degrees")
    rotations_of: str = option(
        "classes",
        "what is turned: each turn of a character is a class of its own (classes), or a task draws different "
        "characters and turns each (tasks), as the code of MAML and MT-net does",
        choices=("classes", "tasks"),
    )


@dataclass
class ImageDatasetConfig:
    """What every data set of photographs has."""

    normalise: bool = option(False, "shift and scale each colour by its mean and deviation over the training classes")
    augment: list[str] = option([], "random changes of training images", choices=("crop", "flip", "jitter"))


@dataclass
class CifarFs(ImageDatasetConfig):
    name: str = "cifar_fs"
    split: str = option("bertinetto", f"division into classes, or {OWN_SPLIT}")


@dataclass
class Fc100(ImageDatasetConfig):
    name: str = "fc100"
    split: str = option("oreshkin", f"division into classes, or {OWN_SPLIT}")


@dataclass
class MiniImagenet(ImageDatasetConfig):
    name: str = "miniimagenet"
    split: str = option("ravi", f"division into classes (ravi, vinyals), or {OWN_SPLIT}")


@dataclass
class TieredImagenet(ImageDatasetConfig):
    name: str = "tieredimagenet"
    split: str = option("ren", f"division into classes, or {OWN_SPLIT}")


@dataclass
class Cub(ImageDatasetConfig):
    name: str = "cub"
    split: str = option("closerlook", f"division into classes, or {OWN_SPLIT}")


@dataclass
class Folder(ImageDatasetConfig):
    name: str = "folder"
    root: str = option(
        "???", "a folder of class folders, of train/val/test folders of those, or a CSV: path,label[,split]"
    )
    size: int = option(64, "pixels that every picture is brought to, high and wide", least=4, most=4096)
    grey: bool = option(False, "one channel instead of three")
    seed: int = option(0, "of the division of the classes, where the folder has none", least=0, most=2**63 - 1)


@dataclass
class Sinusoid:
    name: str = "sinusoid"
    frequency: list[float] = option([1.0, 1.0], "range of the frequency; Meta-SGD and MT-net use [0.8,1.2]", above=0)


@dataclass
class Mlp:
    name: str = "mlp"
    hidden: list[int] = option([40, 40], "widths of the hidden layers; [] is a linear model", least=1, most=10**5)


@dataclass
class Conv4:
    name: str = "conv4"
    filters: int = option(64, "channels of each convolution", least=1, most=10**5)
    bias: bool = option(True, "convolutions have a bias")
    norm: str = option("batch", "normalisation layer", choices=NORM_TYPES)
    downsample: str = option("pool", "2x2 max-pool, or stride-2 convolutions and a mean", choices=("pool", "stride"))


@dataclass
class Resnet12:
    name: str = "resnet12"
    filters: list[int] = option([64, 128, 256, 512], "channels of each of the four stages", least=1, most=10**5)
    activation: str = option(
        "relu", "between the convolutions; leaky_relu has slope 0.1", choices=("relu", "leaky_relu")
    )
    pools: int = option(3, "how many stages end in a 2x2 max-pool", least=0, most=4)
    norm: str = option("batch", "normalisation layer", choices=NORM_TYPES)


@dataclass
class Torchvision:
    name: str = "torchvision"
    network: str = option("resnet18", "which of torchvision's classifiers, by its name there")


# any_step: the update is one that was trained, however many inner steps are taken; what is learned for the steps of
# training alone, such as rates or warps, may diverge behind them.


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
    alpha: str = option("element", "a learned rate for each of these", choices=("element", "tensor", "scalar"))
    start: str = option(
        "rate", "rates begin at inner_learning_rate, or at one draw of U[0.005, 0.1]", choices=("rate", "random")
    )


@dataclass
class Mtnet:
    name: str = "mtnet"
    mask: bool = option(True, "learned masks on the inner gradient; false: T-net")
    full: bool = option(False, "a mask for each weight, drawn afresh at each inner step, instead of each output unit")


@dataclass
class Warpgrad:
    name: str = "warpgrad"
    objective: str = option(
        "warp_maml", "what the warp layers descend", choices=("warp_maml", "trajectory", "unrolled")
    )
    initialisation: str = option(
        "leap", "trajectory: theta follows the tasks' paths, or stays", choices=("leap", "frozen")
    )
    approximate: bool = option(False, "drop the derivative through the look-ahead step (equation 12)")
    start: str = option(
        "reference",
        "warp layers begin random as the reference's, or as the identity",
        choices=("reference", "identity"),
    )
    after: list[str] | None = option(None, "names of the modules that a warp layer follows; null: each block")
    depth: int = option(1, "layers of a warp", least=1, most=100)
    kernel: int = option(3, "width of its convolutions, an odd number", least=1, most=999)
    norm: bool = option(False, "batch norm before each convolution of a warp, and behind the sum of a residual")
    activation: bool = option(False, "ReLU behind each convolution of a warp")
    residual: bool = option(False, "each layer of a warp adds to what it is given")


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
    batch: int = option(32, "images of a mini-batch, of which an outer step takes meta_batch", least=2, most=10**5)


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

FORMS: dict[str, dict[str, Any]] = {  # choices that are another one with these values: what differs in configs/
    "conv4_strided": {"name": "conv4", "downsample": "stride"},
    "conv4_narrow": {"name": "conv4", "filters": 32},
    "resnet12_wide": {
        **{"name": "resnet12", "filters": [64, 160, 320, 640]},
        **{"activation": "leaky_relu", "pools": 4},
    },
}


def choice_name(node: Any) -> str:
    """What a group's values are called where they are chosen: `backbone=conv4_strided` is conv4 with a stride."""
    return next(
        (form for form, own in FORMS.items() if all(getattr(node, key, None) == value for key, value in own.items())),
        node.name,
    )
