"""The backbones by their names in `backbone=`; each is called with `input_shape`, `outputs` and its config keys."""

from collections.abc import Callable

from torch import nn

from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.backbones.resnet12 import ResNet12
from metarun.backbones.torchvision_models import torchvision_model

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "conv4": Conv4,
    "resnet12": ResNet12,
    "torchvision": torchvision_model,
}

__all__ = ["BACKBONES", "MLP", "Conv4", "ResNet12"]
