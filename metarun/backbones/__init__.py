"""The backbones, by the name that `backbone=` takes: plain modules, each forward written once."""

from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.backbones.resnet12 import ResNet12

BACKBONES = {"mlp": MLP, "conv4": Conv4, "resnet12": ResNet12}

__all__ = ["BACKBONES", "MLP", "Conv4", "ResNet12"]
