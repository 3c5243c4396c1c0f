"""Four convolutional blocks and a linear head, the field's standard small network (Vinyals et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.norm import Norm

BLOCKS = 4


class Conv4(nn.Module):
    """[batch, channels, height, width] -> [batch, outputs].

    A block is a 3x3 convolution, norm and ReLU. It halves the image by a 2x2 max-pool ("pool"; the features
    are flattened at the end), or by a stride of 2 ("stride"; the features are averaged over the image), the
    form of MAML's Omniglot network.

    Raises:
        UserError: the image is too small to be halved four times by pooling.
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
        channels, height, width = input_shape
        self.pool = downsample == "pool"
        scale = 2**BLOCKS
        if self.pool and min(height, width) < scale:
            raise UserError(
                f"backbone.downsample=pool: images of {height}x{width} are too small, {scale}x{scale} is the least; "
                "give backbone.downsample=stride"
            )
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels if block == 0 else filters, filters, 3, 1 if self.pool else 2, 1, bias=bias)
            for block in range(BLOCKS)
        )
        self.norms = nn.ModuleList(nn.Identity() if norm == "none" else Norm(norm, filters) for _ in range(BLOCKS))
        self.head = nn.Linear(filters * (height // scale) * (width // scale) if self.pool else filters, outputs)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x))
            if self.pool:
                x = F.max_pool2d(x, 2)
            x = x.relu()  # after the pool, where it is the same and touches a quarter of the elements
        return self.head(x.flatten(1) if self.pool else x.mean((2, 3)))
