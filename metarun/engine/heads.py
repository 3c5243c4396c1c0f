"""The output head of an evaluation whose tasks have another number of classes than those of training."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from metarun.checkpointing.state import Weights
from metarun.config.schema import Settings
from metarun.core.expand_head import HeadNotExpandable, expand_head
from metarun.errors import UserError
from metarun.methods import Parameters


def ways(settings: Settings) -> int:
    """Classes of an evaluation task: `eval.ways`, or else `ways`."""
    return settings.eval.ways or settings.ways


def with_max_ways(settings: Settings) -> Settings:
    """The settings with `ways` raised to `eval.ways`: as many as the network needs outputs."""
    return replace(settings, ways=max(settings.ways, ways(settings)))


def needs_wider_head(settings: Settings) -> bool:
    """Whether an evaluation needs more outputs than were trained; pretraining is evaluated without its head."""
    return ways(settings) > settings.ways and settings.method.episodic


def head_description(settings: Settings) -> str:
    """Which head an evaluation uses, in the words of result.json."""
    if ways(settings) == settings.ways:
        return "as trained"
    return "widened" if ways(settings) > settings.ways else "its first outputs"


def adapt_head_to_ways(settings: Settings, saved: Weights, target: Parameters, network: Collection[str]) -> Weights:
    """A checkpoint's weights with a wider head.

    Args:
        saved: the checkpoint's weights.
        target: parameters with the shapes of the wider network.
        network: names of the network's own parameters, without those that the method added.

    Raises:
        UserError: the method's parameters depend on the number of outputs.
    """
    try:
        return saved._replace(**expand_head(Parameters(saved.theta, saved.phi), target, network)._asdict())
    except HeadNotExpandable as error:
        raise UserError(
            f"eval.ways={ways(settings)}: {settings.ways} are the most for this checkpoint, "
            f"method={settings.method.name} ({error}); give fewer, or train with ways={ways(settings)}"
        ) from error
