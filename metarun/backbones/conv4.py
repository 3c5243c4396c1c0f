"""Four convolutional blocks and a linear head, the field's standard small network (Vinyals et al. 2016)."""

from collections.abc import Sequence

from torch import Tensor, nn

from metarun.backbones.common import image_shape, initialise
from metarun.errors import UserError
from metarun.nn.norm import conv_norm_act, norm_layer

BLOCKS = 4


class Block(nn.Module):
    """3x3 convolution, norm, ReLU; the image is halved by a 2x2 max-pool or by a stride of 2."""

    def __init__(self, channels: int, filters: int, bias: bool, norm: str, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.convolution = nn.Conv2d(channels, filters, 3, stride=1 if pool else 2, padding=1, bias=bias)
        self.norm = norm_layer(norm, filters)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_act(x, self.convolution, self.norm, self.pool)


class Conv4(nn.Module):
    """Conv-4: images [batch, channels, height, width] -> logits [batch, outputs].

    With downsample="pool" the features are flattened; with "stride" they are averaged over the image, as in MAML's
    Omniglot network.

    Raises:
        UserError: the input is not an image, or too small to be halved four times by pooling.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        filters: int = 64,
        bias: bool = True,
        norm: str = "batch",
        downsample: str = "pool",
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("conv4", input_shape)
        self.pool = downsample == "pool"
        scale = 2**BLOCKS
        if self.pool and min(height, width) < scale:
            raise UserError(
                f"backbone.downsample=pool: images of {height}x{width} are too small, {scale}x{scale} is the least; "
                "give backbone.downsample=stride"
            )
        self.blocks = nn.Sequential(
            *(Block(filters if number else channels, filters, bias, norm, self.pool) for number in range(BLOCKS))
        )
        self.head = nn.Linear(filters * (height // scale) * (width // scale) if self.pool else filters, outputs)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.head(x.flatten(1) if self.pool else x.mean((2, 3)))
