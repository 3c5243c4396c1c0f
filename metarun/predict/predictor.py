"""mode=predict: adapt a trained network to new classes from a folder of images, and label other images with them."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState, Weights, copy_state_
from metarun.config.groups import Sinusoid
from metarun.config.schema import Settings
from metarun.core import batch_norm_stats
from metarun.core.expand_head import HeadNotExpandable, expand_head
from metarun.core.forward import MetaLearner, functional_forward, query_weights
from metarun.core.meta_learner import TaskLearner, autograd_gradient
from metarun.core.objectives import classification_among
from metarun.data import method_noise
from metarun.data.image_sampler import ImageTaskSampler
from metarun.engine.dataset import preprocessing_from_checkpoint
from metarun.engine.eval_result import EVALUATION_SEED
from metarun.engine.execution import choose_device
from metarun.engine.network import batch_norm, build_learner, build_model, check_state_shapes
from metarun.engine.task_shapes import eval_inner_loop
from metarun.errors import UserError, relative_to_cwd
from metarun.methods import Parameters, Tensors
from metarun.nn.norm import is_transductive
from metarun.nn.precision import set_precision
from metarun.predict import labelled_images
from metarun.predict.labelled_images import LabelledImages
from metarun.predict.output import Prediction, log_summary, summary, table
from metarun.types import Task
from metarun.utils import files
from metarun.utils.run_outputs import PREDICTIONS

log = logging.getLogger(__name__)

QUERY_BATCH = 100  # images that are labelled at a time


def predict(settings: Settings, folder: Path, begin: Callable[[], object]) -> None:
    """Label the images of `query` with the classes of `support`; writes a table, a figure and a summary to `folder`.

    Args:
        begin: called once, when the command can no longer be refused.

    Raises:
        UserError: no such images, too few or too many classes, or a checkpoint that cannot label images.
        FloatingPointError: the adapted network's outputs are not finite.
    """
    path = store.resolve_checkpoint(Path(str(settings.checkpoint)).expanduser())
    prediction = label_query(settings, store.load(path), str(path))
    begin()
    from metarun.predict.figure import prediction_figure  # imports matplotlib

    title = f"{settings.method.name} on {settings.dataset.name}"
    result = summary(prediction, settings)
    contents = {
        PREDICTIONS: table(prediction),
        "prediction.json": json.dumps(result, indent=2) + "\n",
        "predictions.png": prediction_figure(
            prediction.classes, prediction.support, prediction.query, prediction.probabilities, title
        ),
    }
    if settings.adapted_weights:
        contents["adapted.safetensors"] = save(prediction.weights, {"classes": json.dumps(prediction.classes)})
    for name, content in contents.items():
        files.atomic_write(folder / name, content)
    log_summary(prediction, result)
    log.info("everything is in %s: %s", relative_to_cwd(folder), ", ".join(contents))


def label_query(settings: Settings, state: CheckpointState, path: str) -> Prediction:
    """Adapt the checkpoint's network to the support set in the inner loop, and label the query images.

    The data set of the checkpoint is not needed. Raises UserError and FloatingPointError as `predict`.
    """
    if eval_inner_loop(settings) == 0:
        name = "inner_loop" if settings.eval.inner_loop is None else "eval.inner_loop"
        raise UserError(f"{name}=0: mode=predict learns its classes in the inner loop; give it one step or more")
    if isinstance(settings.dataset, Sinusoid):
        raise UserError(
            f"checkpoint {path}: learned dataset=sinusoid, which has no classes; give one that saw pictures"
        )
    device = choose_device(settings.device)
    set_precision(settings.engine.precision, device)
    source = preprocessing_from_checkpoint(state, path, device)
    places = settings.query if isinstance(settings.query, list) else [settings.query]
    classes, support, query = labelled_images.read(str(settings.support), places, source.image_set.spec)
    learner = build_predictor(state.weights, settings, path, source, len(classes))
    labels = torch.tensor(support.labels, device=device)
    learner = replace(learner, inner_objective=classification_among(labels.bincount()))
    params = tree_map(torch.detach, learner.method.parameters)
    with torch.no_grad():
        support_data = network_inputs(support.images, source)
        theta = adapt(learner, params, support_data, labels)
        weights = query_weights(learner, theta, params.phi, support_data, learner.inner_loop)
        logits = query_logits(learner, weights, query, source)[:, : len(classes)]
    probabilities = logits.double().softmax(1).numpy()
    if not np.isfinite(probabilities).all():
        raise FloatingPointError(
            f"checkpoint {path}: its outputs are not finite after {learner.inner_loop} inner steps on these pictures; "
            "try a smaller inner_learning_rate or inner_loop"
        )
    saved = weights_in_use(learner, weights, support_data) if settings.adapted_weights else {}
    return Prediction(classes, support, query, probabilities, saved, batch_norm(settings, learner.model))


def build_predictor(
    saved: Weights, settings: Settings, path: str, source: ImageTaskSampler, num_classes: int
) -> MetaLearner:
    """The checkpoint's learner for `num_classes` classes: uses the first of its outputs, or expands its head.

    Raises:
        UserError: more classes than the method supports, or a checkpoint that does not match its settings.
    """
    check_state_shapes(settings, source, saved, path)
    learner = build_learner(settings, source, source.device)
    restore(learner, Parameters(saved.theta, saved.phi), path)
    norm = learner.norm
    if norm.rule == "per_step":
        if not saved.statistics:
            raise UserError(
                f"checkpoint {path}: was written between two validations, at which batch_norm=per_step finds its "
                "statistics; give the run folder, or its best.safetensors"
            )
        statistics = batch_norm_stats.zero_statistics(learner).tensors
        copy_state_(statistics, saved.statistics, path)
        norm = replace(norm, statistics=statistics)
    if num_classes > settings.ways:
        trained, settings_wide = learner.method.parameters, replace(settings, ways=num_classes)
        learner = build_learner(settings_wide, source, source.device)
        network = dict(build_model(settings_wide, source).named_parameters())
        try:
            restore(learner, expand_head(trained, learner.method.parameters, network), path)
        except HeadNotExpandable as error:
            raise UserError(
                f"support={settings.support}: has {num_classes} classes, {settings.ways} are the most for this "
                f"checkpoint, method={settings.method.name} ({error}); take class folders away, or train with "
                f"ways={num_classes}"
            ) from error
        log.info(
            "the run had ways=%d, here are %d classes: its head is widened; more inner steps may help, inner_loop=N",
            *(settings.ways, num_classes),
        )
    return replace(learner, inner_loop=eval_inner_loop(settings), norm=norm)


def restore(learner: MetaLearner, saved: Parameters, path: str) -> None:
    for params, saved_params in zip(learner.method.parameters, saved, strict=True):
        copy_state_(params, saved_params, path)


def network_inputs(images: np.ndarray, source: ImageTaskSampler) -> Tensor:
    """uint8 [images, channels, height, width] as float32, normalised as the data set's own images."""
    return source.normalise_images(torch.from_numpy(images).to(source.device).float().div_(255))


def adapt(learner: MetaLearner, params: Parameters, data: Tensor, labels: Tensor) -> Tensors:
    """theta after the inner loop on the support set; the method's random numbers are those of the first test task."""
    noise = method_noise(EVALUATION_SEED, "test", 0, 1, learner.method.noise(learner.inner_loop))[0].to(data.device)
    learner = replace(learner, use_second_order=False)
    return TaskLearner(learner, Task(data, labels, None, None), noise, autograd_gradient).adapt(params)[-1]


def query_logits(learner: MetaLearner, weights: Tensors, query: LabelledImages, source: ImageTaskSampler) -> Tensor:
    """Logits [images, outputs] on the CPU: in one batch under transductive batch norm, else `QUERY_BATCH` at a time."""
    count = len(query.images)
    transductive = learner.norm.rule == "transductive" and is_transductive(learner.model)
    size = count if transductive else QUERY_BATCH
    batches = (network_inputs(query.images[first : first + size], source) for first in range(0, count, size))
    return torch.cat([batch_logits(learner, weights, batch).cpu() for batch in batches])


def batch_logits(learner: MetaLearner, weights: Tensors, batch: Tensor) -> Tensor:
    """Logits [images, outputs]. Raises UserError if a single image is too small for batch norm."""
    try:
        return functional_forward(learner, weights, batch)
    except ValueError as error:
        if len(batch) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "query: batch norm cannot normalise one picture this small by itself; give two or more"
        ) from error


def weights_in_use(learner: MetaLearner, weights: Tensors, data: Tensor) -> Tensors:
    """The weights that the network's output depends on, without other state of the method, such as learning rates."""
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        total = functional_forward(learner, leaves, data).sum()
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    used = [name for name, grad in zip(leaves, grads, strict=True) if grad is not None]
    return {name: leaves[name].detach().cpu().contiguous() for name in used}
