from __future__ import annotations

import pytest
import torch
from torch import nn

from metarun.backbones import BACKBONES, MLP, Conv4
from metarun.config.groups import CONFIG_GROUPS
from metarun.errors import UserError


def test_every_backbone_of_the_schema_exists() -> None:
    assert set(BACKBONES) == set(CONFIG_GROUPS["backbone"])


def test_mlp_has_the_published_shape_and_general_ones() -> None:
    assert [tuple(p.shape) for p in MLP((1,), 1).parameters()] == [(40, 1), (40,), (40, 40), (40,), (1, 40), (1,)]
    wide = MLP((2, 3, 3), 4, hidden=[256, 128, 64])
    assert wide(torch.randn(5, 2, 3, 3)).shape == (5, 4)
    assert MLP((3,), 2, hidden=[])(torch.randn(5, 3)).shape == (5, 2)


@pytest.mark.parametrize("downsample, features", [("pool", 64 * 5 * 5), ("stride", 64)])
def test_conv4_has_the_published_shape(downsample: str, features: int) -> None:
    model = Conv4((3, 84, 84), 5, downsample=downsample)
    assert model(torch.randn(2, 3, 84, 84)).shape == (2, 5)
    assert model.head.in_features == features
    assert [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d)] == [
        (64, 3, 3, 3),
        *[(64, 64, 3, 3)] * 3,
    ]


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_conv4_norms_and_bias_are_keys(norm: str, bias: bool) -> None:
    model = Conv4((1, 28, 28), 5, filters=12, bias=bias, norm=norm, downsample="stride")
    assert model(torch.randn(3, 1, 28, 28)).shape == (3, 5)
    names = dict(model.named_parameters())
    assert ("blocks.0.convolution.bias" in names) == bias
    assert ("blocks.0.norm.weight" in names) == (norm != "none")


def test_relu_after_the_pool_is_relu_before_it() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(nn.functional.max_pool2d(x, 2).relu(), nn.functional.max_pool2d(x.relu(), 2))


def test_conv4_refuses_what_is_no_image_or_too_small_to_pool() -> None:
    with pytest.raises(UserError, match=r"backbone=conv4 takes images, .* shape \[1\]"):
        Conv4((1,), 1)
    with pytest.raises(UserError, match=r"downsample=pool: images of 12x20 are too small"):
        Conv4((1, 12, 20), 5)
    Conv4((1, 12, 20), 5, downsample="stride")(torch.randn(2, 1, 12, 20))
