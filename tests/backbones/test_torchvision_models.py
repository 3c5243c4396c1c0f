from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from metarun.backbones import BACKBONES
from metarun.backbones.torchvision_models import make_deterministic, torchvision_model, weights_url
from metarun.errors import UserError
from metarun.methods import METHODS
from metarun.methods.layers import head_names
from metarun.nn.norm import Norm, is_transductive
from tests.helpers.laws import largest_relative_error, learning, shake
from tests.helpers.problems import regression_tasks

models = pytest.importorskip("torchvision.models")


def test_it_is_torchvision_s_network_with_its_names() -> None:
    """In training mode, with the affine away from where it begins."""
    theirs = models.get_model("resnet18", weights=None, num_classes=5)
    shake({name: p for name, p in theirs.named_parameters() if "bn" in name or "downsample.1" in name})
    ours = BACKBONES["torchvision"]((3, 32, 32), 5)
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]
    ours.load_state_dict(dict(theirs.named_parameters()))  # strictly: nothing is beside
    x = torch.randn(6, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert not list(ours.named_buffers()) and is_transductive(ours)


def test_norms_keep_their_beginning() -> None:
    first = nn.BatchNorm2d(3, eps=0.1)
    nn.init.constant_(first.weight, 3)
    model = nn.Sequential(first, nn.Sequential(nn.BatchNorm2d(2)))
    make_deterministic(model)
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    assert [norm.eps for norm in norms] == [0.1, 1e-5] and not is_transductive(nn.Linear(1, 1))
    assert (norms[0].weight == 3).all() and not norms[0].bias.any() and (norms[1].weight == 1).all()


@pytest.mark.parametrize("network", ["mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1"])
def test_nothing_is_random_and_no_buffer_moves(network: str) -> None:
    """Networks with dropout and stochastic depth, in training mode."""
    model = torchvision_model((1, 28, 28), 5, network)
    x, before = torch.rand(3, 1, 28, 28), torch.random.get_rng_state()
    with torch.no_grad():
        first, second = model(x), model(x)
    assert torch.equal(first, second) and first.shape == (3, 5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not list(model.named_buffers())


def test_grey_is_three_equal_colours() -> None:
    grey, colours = (torchvision_model((channels, 32, 32), 5, "shufflenet_v2_x0_5") for channels in (1, 3))
    grey.load_state_dict(colours.state_dict())
    x = torch.rand(4, 1, 32, 32)
    assert torch.equal(grey(x), colours(x.repeat(1, 3, 1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["maml", "l2f", "anil", "boil", "warpgrad"])
def test_methods_learn_all_of_it_vectorised_as_looped(method: str) -> None:
    torch.manual_seed(2)
    model = torchvision_model((1, 28, 28), 2, "shufflenet_v2_x0_5").double()
    options = {"kernel": 1} if method == "warpgrad" else {}  # behind each convolution
    learned = METHODS[method](model, 1e-3, **options)
    one = learning(model, learned, regression_tasks(2, (1, 28, 28), outputs=2, each=4), 1)
    looped = one.judged(False)
    assert largest_relative_error(one.judged(True), looped) < 1e-5  # weights moved by 4e-16 move it by as much
    assert all(float(tensor.abs().max()) > 0 for tensor in tree_leaves(looped[0]))


@pytest.mark.parametrize(
    ("network", "head"), [("resnet18", "fc"), ("squeezenet1_1", "classifier.1"), ("mobilenet_v3_small", "classifier.3")]
)
def test_the_head_is_what_has_an_output_for_each_class(network: str, head: str) -> None:
    with torch.device("meta"):
        model = torchvision_model((3, 64, 64), 7, network)
        wide = dict(torchvision_model((3, 64, 64), 9, network).named_parameters())
    differ = {name for name, p in model.named_parameters() if wide[name].shape != p.shape}
    assert head_names(model) == differ == {f"{head}.weight", f"{head}.bias"}


@pytest.mark.parametrize("network", ["regnet_y_400mf", "googlenet", "swin_t"])
def test_shapes_can_be_had_without_memory(network: str) -> None:
    """As a checkpoint's are compared; RegNet's alone are made with it."""
    with torch.device("meta"):
        model = torchvision_model((3, 64, 64), 5, network)
    assert all(p.is_meta for p in model.parameters()) == (network != "regnet_y_400mf")


def test_what_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"backbone=torchvision takes images, .* shape \[1\]"):
        torchvision_model((1,), 5)
    with pytest.raises(UserError, match="the data set has 4 channels"):
        torchvision_model((4, 32, 32), 5)
    with pytest.raises(UserError, match=r"backbone.network=resnet_18: .* did you mean 'resnet18'\?"):
        torchvision_model((3, 32, 32), 5, "resnet_18")
    with torch.device("meta"):
        for network, reason in (("densenet121", "too small"), ("vit_b_32", "Expected 224 but got 28")):
            with pytest.raises(UserError, match=rf"network={network}: does not take pictures of 28x28 \(.*{reason}"):
                torchvision_model((3, 28, 28), 5, network)
    load = builtins.__import__

    def broken(name: str, *arguments: Any) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(UserError, match=r"torchvision cannot be imported \(operator .*nms does not exist\); install"):
        torchvision_model((3, 32, 32), 5)


def test_where_its_weights_lie_is_known_without_asking_there() -> None:
    assert weights_url("resnet18").startswith("https://") and weights_url("resnet18").endswith(".pth")
