"""A checkpoint's head where an evaluation has other classes a task than training had: part of it, or a wider one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from metarun.checkpointing.state import Weights
from metarun.config.groups import Pretrain
from metarun.config.schema import Settings
from metarun.core.expand_head import HeadNotExpandable, expand_head
from metarun.errors import UserError
from metarun.methods import Parameters


def ways(settings: Settings) -> int:
    """Classes of an evaluation's task."""
    return settings.eval.ways or settings.ways


def with_max_ways(settings: Settings) -> Settings:
    """With as many `ways` as the network needs outputs."""
    return replace(settings, ways=max(settings.ways, ways(settings)))


def needs_wider_head(settings: Settings) -> bool:
    """Whether a checkpoint's head is too narrow; that of pretraining takes no part."""
    return ways(settings) > settings.ways and not isinstance(settings.method, Pretrain)


def head_description(settings: Settings) -> str:
    """Which head an evaluation has, as its result says."""
    if ways(settings) == settings.ways:
        return "as trained"
    return "widened" if ways(settings) > settings.ways else "its first outputs"


def adapt_head_to_ways(settings: Settings, saved: Weights, wanted: Parameters, network: Collection[str]) -> Weights:
    """A checkpoint's weights with the parameters in the shapes of `wanted`, where the head is too narrow.

    Args:
        network: names of the network's own parameters, without what the method added.

    Raises:
        UserError: the method ties the outputs to each other.
    """
    try:
        return saved._replace(**expand_head(Parameters(saved.theta, saved.phi), wanted, network)._asdict())
    except HeadNotExpandable as error:
        raise UserError(
            f"eval.ways={ways(settings)}: {settings.ways} are the most for this checkpoint, "
            f"method={settings.method.name} ({error}); give fewer, or train with ways={ways(settings)}"
        ) from error
