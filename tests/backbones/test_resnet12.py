from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metarun.backbones import ResNet12
from metarun.errors import UserError
from metarun.methods import METHODS
from metarun.methods.warp_layers import default_warp_sites
from tests.helpers.laws import CASES, largest_relative_error, learning, shake
from tests.helpers.problems import regression_tasks

TINY = (4, 4, 8, 8)
WIDE = {"filters": (64, 160, 320, 640), "activation": "leaky_relu", "pools": 4}


def without_memory(**options: object) -> ResNet12:
    with torch.device("meta"):
        return ResNet12((3, 84, 84), 5, **options)  # type: ignore[arg-type]


def test_it_has_the_published_sizes() -> None:
    narrow, wide = without_memory(), without_memory(**WIDE)
    l2f = METHODS["maml"](narrow, 0.1).parameters.theta
    assert len(l2f) == 18 and {name for name in l2f if name.endswith("bias")} == {"head.bias"}
    convolutions = [(3, 64), (64, 128), (128, 256), (256, 512)]
    expected = sum(9 * a * b + 2 * 9 * b * b + a * b for a, b in convolutions)
    norms = 2 * 4 * sum(b for _, b in convolutions)
    assert sum(p.numel() for p in narrow.parameters()) == expected + norms + 512 * 5 + 5 == 7_999_365
    assert sum(p.numel() for p in wide.parameters()) == 12_427_525  # the literature's 12.4 million


def reference(model: ResNet12, x: Tensor, slope: float, pools: int) -> Tensor:
    """As the papers' code has it: activation behind the sum, then the pool; torch's own batch norm."""

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, weight, bias, training=True)

    w = dict(model.named_parameters())
    for stage in range(4):
        at, y = f"blocks.{stage}", x
        for i in range(3):
            y = F.conv2d(y, w[f"{at}.convolutions.{i}.weight"], padding=1)
            y = norm(y, w[f"{at}.norms.{i}.weight"], w[f"{at}.norms.{i}.bias"])
            y = F.leaky_relu(y, slope) if i < 2 else y
        beside = norm(F.conv2d(x, w[f"{at}.shortcut.weight"]), *model.blocks[stage].shortcut_norm.parameters())  # type: ignore[union-attr]
        x = F.leaky_relu(y + beside, slope)
        x = F.max_pool2d(x, 2) if stage < pools else x
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), w["head.weight"], w["head.bias"])


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("leaky_relu", 0.1)])
@pytest.mark.parametrize("pools", [3, 4])
def test_it_computes_what_the_papers_code_does(activation: str, slope: float, pools: int) -> None:
    model = ResNet12((3, 17, 20), 5, TINY, activation, pools).double()
    shake({name: p for name, p in model.named_parameters() if "norm" in name})
    x = torch.randn(6, 3, 17, 20, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(model, x, slope, pools))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 84, 84), (1, 8, 9)])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_it_takes_the_pictures_of_every_data_set(shape: tuple[int, ...], norm: str) -> None:
    assert ResNet12(shape, 7, TINY, norm=norm)(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in CASES if not name.startswith("learn_lr")])
def test_every_method_learns_all_of_it_vectorised_as_looped(method: str) -> None:
    model = ResNet12((1, 8, 8), 2, (2, 2, 3, 3), "leaky_relu").double()
    learned = CASES[method].make(model, 0.1)
    shake(learned.parameters.phi)
    tasks = regression_tasks(2, (1, 8, 8), outputs=2, each=4)
    one = learning(model, learned, tasks, 2, CASES[method].order)
    looped = one.judged(False)
    assert largest_relative_error(one.judged(True), looped) < 1e-9
    assert all(float(tensor.abs().max()) > 0 for tensor in tree_leaves(looped[0]))


def test_the_head_and_the_blocks_are_found() -> None:
    model = ResNet12((3, 16, 16), 5, TINY)
    assert set(METHODS["anil"](model, 0.1).parameters.theta) == {"head.weight", "head.bias"}
    assert set(METHODS["boil"](model, 0.1).parameters.phi) == {"head.weight", "head.bias"}
    assert default_warp_sites(model) == [f"blocks.{i}" for i in range(4)]


def test_it_refuses_what_it_cannot_take() -> None:
    with pytest.raises(UserError, match=r"backbone=resnet12 takes images, .* shape \[1\]"):
        ResNet12((1,), 1)
    with pytest.raises(UserError, match=r"backbone.pools=4: images of 15x20 are too small, 16x16 is the least"):
        ResNet12((1, 15, 20), 5, TINY, pools=4)
    with pytest.raises(UserError, match=r"backbone.filters=\[4, 4\]: resnet12 has 4 stages"):
        ResNet12((1, 28, 28), 5, (4, 4))
