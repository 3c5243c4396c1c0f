"""ResNet-12: four residual stages of three convolutions each, and a linear head.

Mishra et al. 2018 (SNAIL, arXiv 1707.03141) and Oreshkin et al. 2018 (TADAM, arXiv 1805.10123), in the two common
forms: narrow (64-128-256-512, ReLU, max-pools after the first three stages: the code of L2F, ALFA and MeTAL) and wide
(64-160-320-640, LeakyReLU, max-pools after all four: the code of MetaOptNet). Without their DropBlock and dropout.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from metarun.backbones.common import image_shape, initialise
from metarun.errors import UserError
from metarun.nn.norm import conv_norm_act, norm_layer, pool_and_activate

STAGES = 4
SLOPES = {"relu": 0.0, "leaky_relu": 0.1}  # negative slopes of the activations


class Stage(nn.Module):
    """Three 3x3 convolutions with norms, plus a 1x1 shortcut with a norm; activation; an optional 2x2 max-pool."""

    def __init__(self, channels: int, filters: int, norm: str, slope: float, pool: bool) -> None:
        super().__init__()
        self.slope, self.pool = slope, pool
        in_channels = (channels, filters, filters)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, filters, 3, padding=1, bias=False) for width in in_channels)
        self.norms = nn.ModuleList(norm_layer(norm, filters) for _ in in_channels)
        self.shortcut = nn.Conv2d(channels, filters, 1, bias=False)
        self.shortcut_norm = norm_layer(norm, filters)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        *inner, (last_convolution, last_norm) = zip(self.convolutions, self.norms, strict=True)
        for convolution, norm in inner:
            y = conv_norm_act(y, convolution, norm, slope=self.slope)
        y = last_norm(last_convolution(y)) + self.shortcut_norm(self.shortcut(x))
        return pool_and_activate(y, self.pool, self.slope)


class ResNet12(nn.Module):
    """ResNet-12: images [batch, channels, height, width] -> logits [batch, outputs].

    The last stage's features are averaged over the image.

    Raises:
        UserError: the input is not an image, or too small for `pools` max-pools; `filters` does not have four widths.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        filters: Sequence[int] = (64, 128, 256, 512),
        activation: str = "relu",
        pools: int = 3,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("resnet12", input_shape)
        if len(filters) != STAGES:
            raise UserError(f"backbone.filters={list(filters)}: resnet12 has {STAGES} stages; give a number for each")
        if min(height, width) < (least := 2**pools):
            raise UserError(
                f"backbone.pools={pools}: images of {height}x{width} are too small, {least}x{least} is the least; "
                "give fewer pools"
            )
        widths = itertools.pairwise([channels, *filters])
        self.blocks = nn.Sequential(
            *(Stage(*pair, norm, SLOPES[activation], number < pools) for number, pair in enumerate(widths))
        )
        self.head = nn.Linear(filters[-1], outputs)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))
