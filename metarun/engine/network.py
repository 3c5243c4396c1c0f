"""A run's network and how it learns, made from its settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from metarun.backbones import BACKBONES
from metarun.checkpointing import state
from metarun.checkpointing.state import Weights
from metarun.config.schema import Settings
from metarun.core.forward import MetaLearner
from metarun.core.objectives import classification, regression
from metarun.data import TaskSampler
from metarun.data.image_sampler import ImageTaskSampler
from metarun.errors import UserError
from metarun.methods import prepare
from metarun.metrics import ACCURACY, MSE
from metarun.nn.norm import BatchNormPolicy, is_transductive, per_step

OBJECTIVES = {ACCURACY.name: classification, MSE.name: regression}


def build_learner(settings: Settings, source: TaskSampler, device: torch.device) -> MetaLearner:
    """The network for a source's tasks, with its initial weights, and how it learns."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build_model(settings, source).to(device)
        chosen = as_kwargs(settings.method)
        norm = BatchNormPolicy("transductive" if batch_norm(settings, model) == "none" else settings.batch_norm)
        if norm.rule == "per_step":
            norm = per_step(model, settings.inner_loop)
        rate, steps = settings.inner_learning_rate, settings.inner_loop
        method = prepare(chosen.pop("name"), model, rate, settings.learn_lr, steps, **chosen)
    objective = OBJECTIVES[source.metric]
    steps = settings.inner_loop if settings.method.episodic else 0
    order, precision = settings.use_second_order, settings.engine.precision
    return MetaLearner(model, method, objective, objective, steps, order, norm, precision)


def check_state_shapes(settings: Settings, source: TaskSampler, saved: Weights, name: str) -> None:
    """Whether a checkpoint's parameters fit its settings, before a network is made: they may ask for any size.

    Raises:
        UserError: they do not.
    """
    layers = len(getattr(settings.backbone, "hidden", ()))
    if layers > len(saved.theta) + len(saved.phi):
        raise UserError(
            f"checkpoint {name}: of another architecture: backbone.hidden has {layers} layers, it has fewer"
        )
    with torch.device("meta"):  # shapes without memory
        learner = build_learner(settings, source, torch.device("meta"))
    for kind, tensors in learner.method.parameters._asdict().items():
        state.require_same_shapes(tensors, getattr(saved, kind), name)


def build_model(settings: Settings, source: TaskSampler) -> nn.Module:
    backbone = as_kwargs(settings.backbone)
    outputs = source.num_outputs(settings.ways)
    if not settings.method.episodic:
        assert isinstance(source, ImageTaskSampler)
        outputs = source.num_training_classes
    return BACKBONES[backbone.pop("name")](source.input_shape, outputs, **backbone)


def batch_norm(settings: Settings, model: nn.Module) -> str:
    """What the norm layers' statistics are, or "none" where there is no batch norm."""
    return settings.batch_norm if is_transductive(model) else "none"


def as_kwargs(group: Any) -> dict[str, Any]:
    """A group's keys as plain arguments."""
    return dataclasses.asdict(group)
