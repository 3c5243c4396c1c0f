"""A run's network and meta-learner, built from its settings, and a checkpoint's weights fitted to them."""

from dataclasses import asdict

import torch
from torch import nn

from metarun.backbones import BACKBONES
from metarun.checkpointing.state import Weights, require_same_shapes
from metarun.config.schema import Settings
from metarun.core.expand_head import HeadNotExpandable, expand_head
from metarun.core.forward import MetaLearner
from metarun.core.objectives import classification, regression
from metarun.data import TaskSampler
from metarun.data.image_sampler import ImageTaskSampler
from metarun.engine.task_shapes import eval_ways, with_max_ways
from metarun.errors import UserError
from metarun.methods import Parameters, prepare
from metarun.metrics import ACCURACY, MSE
from metarun.nn.norm import BatchNormPolicy, is_transductive, per_step

OBJECTIVES = {ACCURACY.name: classification, MSE.name: regression}


def build_model(settings: Settings, source: TaskSampler) -> nn.Module:
    """The network for a source's tasks, with its initial weights; for pretraining, with an output for each class."""
    backbone, outputs = asdict(settings.backbone), source.num_outputs(settings.ways)
    if not settings.method.episodic:
        assert isinstance(source, ImageTaskSampler)
        outputs = source.num_training_classes
    return BACKBONES[backbone.pop("name")](source.input_shape, outputs, **backbone)


def build_learner(settings: Settings, source: TaskSampler, device: torch.device) -> MetaLearner:
    """The network for a source's tasks with its initial weights, prepared for the method of the settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build_model(settings, source).to(device)
        chosen = asdict(settings.method)
        norm = BatchNormPolicy("transductive" if batch_norm(settings, model) == "none" else settings.batch_norm)
        if norm.rule == "per_step":
            norm = per_step(model, settings.inner_loop)
        rate, steps = settings.inner_learning_rate, settings.inner_loop
        method = prepare(chosen.pop("name"), model, rate, settings.learn_lr, steps, **chosen)
    objective = OBJECTIVES[source.metric]
    steps = settings.inner_loop if settings.method.episodic else 0
    order, precision = settings.use_second_order, settings.engine.precision
    return MetaLearner(model, method, objective, objective, steps, order, norm, precision)


def batch_norm(settings: Settings, model: nn.Module) -> str:
    """The rule for batch-norm statistics, or "none" if the model has no batch norm."""
    return settings.batch_norm if is_transductive(model) else "none"


def check_state_shapes(settings: Settings, source: TaskSampler, saved: Weights, name: str) -> None:
    """Raises UserError if a checkpoint's parameters do not have the shapes that its settings give.

    The network is not allocated: the settings of a stranger's checkpoint may ask for any size.
    """
    layers = len(getattr(settings.backbone, "hidden", ()))
    if layers > len(saved.theta) + len(saved.phi):
        raise UserError(
            f"checkpoint {name}: of another architecture: backbone.hidden has {layers} layers, it has fewer"
        )
    with torch.device("meta"):
        learner = build_learner(settings, source, torch.device("meta"))
    for part, tensors in learner.method.parameters._asdict().items():
        require_same_shapes(tensors, getattr(saved, part), name)


def widen_head(settings: Settings, source: TaskSampler, saved: Weights, target: Parameters) -> Weights:
    """A checkpoint's weights with as many outputs as an evaluation needs: `saved` itself, or with a wider head.

    Args:
        target: parameters of the method with the shapes of the wider network.

    Raises:
        UserError: the method's parameters depend on the number of outputs.
    """
    ways = eval_ways(settings)
    if ways <= settings.ways or not settings.method.episodic:  # pretraining is evaluated without its head
        return saved
    with torch.device("meta"):  # parameter names without memory
        names = dict(build_model(with_max_ways(settings), source).named_parameters())
    try:
        return saved._replace(**expand_head(Parameters(saved.theta, saved.phi), target, names)._asdict())
    except HeadNotExpandable as error:
        raise UserError(
            f"eval.ways={ways}: {settings.ways} are the most for this checkpoint, method={settings.method.name} "
            f"({error}); give fewer, or train with ways={ways}"
        ) from error
