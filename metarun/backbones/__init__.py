"""The backbones, by the name that `backbone=` takes: plain modules, each forward written once."""

from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP

BACKBONES = {"mlp": MLP, "conv4": Conv4}

__all__ = ["BACKBONES", "MLP", "Conv4"]
