"""Checks of the keys of a network against each other and against the data set and method; see `conflicts`."""

from __future__ import annotations

from collections.abc import Iterator

from metarun.config.groups import Conv4, Folder, Mlp, Resnet12, Sinusoid, Torchvision, choice_name
from metarun.config.methods import Boil, Warpgrad
from metarun.config.schema import Settings
from metarun.errors import did_you_mean

HALVED = 16  # smallest input size of conv4, which halves its input four times
STAGES = 4  # of a ResNet-12
CONVOLUTIONS = tuple(f"convolutions.{i}" for i in range(3))  # of a stage


def check_warps(method: Warpgrad, backbone: object) -> Iterator[str]:
    if method.initialisation != "leap" and method.objective != "trajectory":
        yield (
            f"method.initialisation={method.initialisation}: is read by method.objective=trajectory only, "
            f"not by {method.objective}; leave out one of the two"
        )
    if method.approximate and method.objective == "unrolled":
        yield "method.approximate=true: there is no look-ahead step in method.objective=unrolled; leave out one of them"
    if method.kernel % 2 == 0:
        yield f"method.kernel={method.kernel}: must be an odd number, as an even one would change an image's size"
    if isinstance(backbone, Mlp):
        if not backbone.hidden and method.after is None:
            yield "backbone.hidden=[]: a linear model has no layers for method=warpgrad to stand between"
        for name, plain in (("kernel", Warpgrad.kernel), ("norm", Warpgrad.norm)):
            if getattr(method, name) != plain:
                found = str(getattr(method, name)).lower()
                yield f"method.{name}={found}: is of convolutions, which backbone=mlp has none of; leave it out"
    places = modules(backbone)
    if method.after is not None and not method.after:
        yield "method.after=[]: names no module to put a warp layer behind; null puts one behind each block"
    for name in method.after or ():
        if places and name not in places:
            yield f"method.after: {name!r} is no module to put a warp layer behind; choose from {', '.join(places)}" + (
                did_you_mean(name, places)
            )
        if (method.after or []).count(name) > 1:
            yield f"method.after: names {name!r} twice; a module has one warp"


def modules(backbone: object) -> list[str]:
    """Names of the modules of a backbone that a warp layer can follow; empty if they are not known without torch."""
    if isinstance(backbone, Conv4):
        blocks = [f"blocks.{i}" for i in range(4)]
        return ["blocks", *blocks, *(f"{block}.convolution" for block in blocks), "head"]
    if isinstance(backbone, Resnet12):
        blocks = [f"blocks.{i}" for i in range(STAGES)]
        within = [f"{block}.{name}" for block in blocks for name in (*CONVOLUTIONS, "shortcut")]
        return ["blocks", *blocks, *within, "head"]
    return [f"layers.{i}" for i in range(len(backbone.hidden) + 1)] if isinstance(backbone, Mlp) else []


def check_network(s: Settings) -> Iterator[str]:
    if not isinstance(s.backbone, Mlp) and isinstance(s.dataset, Sinusoid):
        yield (
            f"backbone={choice_name(s.backbone)}: takes pictures, and dataset=sinusoid has points of a curve; "
            "give backbone=mlp"
        )
    if isinstance(s.backbone, Resnet12):
        yield from check_stages(s.backbone, s.dataset)
    if isinstance(s.backbone, Mlp) and not s.backbone.hidden and isinstance(s.method, Boil):
        yield "backbone.hidden=[]: is a head alone, and method=boil adapts all but the head; give hidden layers"
    if isinstance(s.backbone, Conv4) and isinstance(s.dataset, Folder):
        size, norm = s.dataset.size, s.backbone.norm
        if s.backbone.downsample == "pool" and size < HALVED:
            yield (
                f"dataset.size={size}: backbone.downsample=pool halves pictures four times, {HALVED} is the least; "
                "give backbone.downsample=stride"
            )
        if s.backbone.downsample == "stride" and norm == "instance" and size <= HALVED:
            yield (
                f"dataset.size={size}: backbone.norm=instance would make 0 of the single pixel that is left of a "
                f"picture; give more than {HALVED}, or another norm"
            )


def check_stages(backbone: Resnet12, dataset: object) -> Iterator[str]:
    filters, least = backbone.filters, 2**backbone.pools
    if len(filters) != STAGES:
        yield f"backbone.filters={filters}: resnet12 has {STAGES} stages; give a number for each, [A,B,C,D]"
    if isinstance(dataset, Folder) and dataset.size < least:
        yield (
            f"dataset.size={dataset.size}: backbone.pools={backbone.pools} halve pictures as often, {least} is the "
            "least; give fewer pools"
        )


def has_batch_norm(s: Settings) -> bool:
    """Whether the network may have batch norm."""
    if isinstance(s.backbone, Torchvision):  # most have it; the network is not built yet
        return True
    return getattr(s.backbone, "norm", "") == "batch" or (isinstance(s.method, Warpgrad) and s.method.norm)


def check_batch_norm(s: Settings) -> Iterator[str]:
    given = f"batch_norm={s.batch_norm}"
    if s.batch_norm != "transductive" and not has_batch_norm(s):
        norm = getattr(s.backbone, "norm", None)
        what = f"backbone.norm={norm}" if norm else f"backbone={choice_name(s.backbone)}"
        yield f"{given}: {what} has no batch norm; leave it out"
    if s.batch_norm != "per_step":
        return
    if s.inner_loop == 0 and s.mode == "train":
        yield f"inner_loop=0: {given} has an affine for each inner step, and there would be none; give one or more"
    if isinstance(s.method, (Boil, Warpgrad)):
        yield (
            f"{given}: method={s.method.name} adapts the affine of norms, and one for each step would be used once, "
            "before it can adapt; give batch_norm=support, or another method"
        )
