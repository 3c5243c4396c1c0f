"""torchvision's image classifiers, made deterministic and normalised by each batch's statistics.

Dropout and stochastic depth are removed, because a forward pass must not draw random numbers; batch norms become
`Norm`s without running statistics. Parameters keep torchvision's names, so that its weight files can be loaded.
"""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.backbones.common import image_shape
from metarun.errors import UserError, did_you_mean
from metarun.nn.norm import Norm, before_norm

COLOURS = 3
OPTIONS: dict[str, dict[str, Any]] = {  # no auxiliary classifiers; the initialisation of their papers
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def torchvision_model(input_shape: Sequence[int], outputs: int, network: str = "resnet18") -> nn.Module:
    """A classifier: images [batch, 1 or 3, height, width] -> logits [batch, outputs], with random weights.

    Grey images are repeated for the three colour channels.

    Raises:
        UserError: torchvision cannot be imported, has no such classifier, or the classifier does not take images of
            this size.
    """
    channels, height, width = image_shape("torchvision", input_shape)
    if channels not in (1, COLOURS):
        raise UserError(f"backbone=torchvision takes grey pictures or colours, the data set has {channels} channels")
    models = torchvision_models(network)
    # RegNets compute their widths with tensors, which does not work on the meta device
    with torch.device("cpu") if network.startswith("regnet") else nullcontext():
        model = models.get_model(network, weights=None, num_classes=outputs, **OPTIONS.get(network, {}))
    make_deterministic(model)
    if channels == 1:
        model.register_forward_pre_hook(grey_to_rgb)
    check_input_size(model, network, (2, channels, height, width))
    return model


def torchvision_models(network: str) -> Any:
    """torchvision.models. Raises UserError if it cannot be imported or has no classifier of this name."""
    try:
        from torchvision import models  # takes two seconds
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: built for another torch
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"backbone=torchvision: torchvision cannot be imported ({reason}); install the one that belongs to torch "
            f"{torch.__version__}, or give another backbone"
        ) from error
    known = models.list_models(module=models)
    if network not in known:
        raise UserError(
            f"backbone.network={network}: torchvision has no classifier of that name; it has {len(known)}, "
            f"such as resnet18, mobilenet_v3_small, densenet121{did_you_mean(network, known)}"
        )
    return models


def weights_url(network: str) -> str:
    """URL of torchvision's ImageNet weights of a classifier; nothing is downloaded."""
    return torchvision_models(network).get_model_weights(network).DEFAULT.url


def make_deterministic(module: nn.Module) -> None:
    """Remove dropout and stochastic depth, and replace batch norms by `Norm`s with the same affine, in place."""
    from torchvision.ops import StochasticDepth

    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = Norm("batch", child.num_features, child.eps)
            norm.load_state_dict({"weight": child.weight, "bias": child.bias}, assign=True)
            setattr(module, name, norm)
        elif isinstance(child, (nn.modules.dropout._DropoutNd, StochasticDepth)):
            setattr(module, name, nn.Identity())
        else:
            make_deterministic(child)
    if isinstance(module, nn.Sequential):
        for layer, following in itertools.pairwise(module):
            if type(layer) is nn.Conv2d and isinstance(following, Norm):
                layer.forward = partial(before_norm, layer)  # pyright: ignore[reportAttributeAccessIssue]


def grey_to_rgb(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Forward pre-hook: grey images [batch, 1, height, width] as [batch, 3, height, width]."""
    (x,) = inputs
    return x.expand(-1, COLOURS, -1, -1)


def check_input_size(model: nn.Module, network: str, shape: Sequence[int]) -> None:
    """Raise UserError if the model does not take inputs of `shape`, by a forward pass on the meta device."""
    state = {name: t.to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    try:
        functional_call(model, state, (torch.empty(*shape, device="meta"),))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        height, width = shape[-2:]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"backbone.network={network}: does not take pictures of {height}x{width} ({reason}); "
            "give another network, or pictures of another size"
        ) from error
