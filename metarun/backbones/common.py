"""Input check and initialisation of the image backbones."""

from collections.abc import Sequence

from torch import nn

from metarun.errors import UserError


def image_shape(backbone: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of `input_shape`. Raises UserError if the inputs are not images."""
    if len(input_shape) != 3:
        raise UserError(
            f"backbone={backbone} takes images, the data set has inputs of shape {list(input_shape)}: give backbone=mlp"
        )
    channels, height, width = input_shape
    return channels, height, width


def initialise(model: nn.Module) -> None:
    """Initialise convolutions and linear layers: Glorot-uniform weights, zero biases, as in MAML's and L2F's code."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
