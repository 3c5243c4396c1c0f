"""The job of mode=predict: adapt a trained network to a person's own classes, and label their pictures."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from metarun.engine.context import eval_inner_loop
from metarun.engine.eval_preprocessing import preprocessing_from_checkpoint
from metarun.engine.eval_result import EVALUATION_SEED
from metarun.engine.execution import choose_device
from metarun.engine.network import batch_norm, build_learner, build_model, check_state_shapes
from metarun.errors import UserError, relative_to_cwd
from metarun.methods import Parameters, Tensors
from metarun.nn.norm import is_transductive
from metarun.nn.precision import set_precision
from metarun.predict import labelled_images
from metarun.predict.labelled_images import LabelledImages, join_truncated
from metarun.types import Task
from metarun.utils import files as whole_files
from metarun.utils.run_outputs import PREDICTIONS
from metarun.utils.text import csv_table, printable

log = logging.getLogger(__name__)

SUMMARY = "prediction.json"
NORMAL = 1.959964  # standard deviations: 95 % of a normal distribution lie within them
QUERY_BATCH = 100  # pictures that are labelled at a time


@dataclass(frozen=True)
class Prediction:
    classes: list[str]
    support: LabelledImages
    query: LabelledImages
    probabilities: np.ndarray  # [queries, classes]
    weights: Tensors  # of the adapted network, where they are asked for
    batch_norm: str  # what the norm layers' statistics are

    @property
    def found(self) -> list[int]:
        return self.probabilities.argmax(1).tolist()


def predict(settings: Settings, folder: Path, begin: Callable[[], object]) -> None:
    """Label the pictures of `query` by what `support` shows; leaves a table, a picture and a summary in `folder`.

    Args:
        begin: is called when the command can no longer be refused.

    Raises:
        UserError: no such pictures, too few or too many classes, or a checkpoint that cannot label pictures.
        FloatingPointError: the adapted network's outputs are not finite.
    """
    path = store.resolve_checkpoint(Path(str(settings.checkpoint)).expanduser())
    made = prediction(settings, store.load(path), str(path))
    begin()
    whole_files.atomic_write(folder / PREDICTIONS, table(made))
    whole_files.atomic_write(folder / SUMMARY, json.dumps(summary(made, settings), indent=2) + "\n")
    from metarun.predict.figure import prediction_figure  # brings matplotlib with it

    title = f"{settings.method.name} on {settings.dataset.name}"
    whole_files.atomic_write(
        folder / "predictions.png", prediction_figure(made.classes, made.support, made.query, made.probabilities, title)
    )
    files = [PREDICTIONS, SUMMARY, "predictions.png"]
    if settings.adapted_weights:
        whole_files.atomic_write(folder / "adapted.safetensors", weights_file(made))
        files.append("adapted.safetensors")
    log_summary(made, settings)
    log.info("everything is in %s: %s", relative_to_cwd(folder), ", ".join(files))


def prediction(settings: Settings, state: CheckpointState, path: str) -> Prediction:
    """Adapt to the support set by the run's inner loop, and label the queries."""
    if eval_inner_loop(settings) == 0:
        name = "inner_loop" if settings.eval.inner_loop is None else "eval.inner_loop"
        raise UserError(f"{name}=0: mode=predict learns its classes in the inner loop; give it one step or more")
    device = choose_device(settings.device)
    set_precision(settings.engine.precision, device)
    source = preprocessing_source(state, settings, path, device)
    places = settings.query if isinstance(settings.query, list) else [settings.query]
    classes, support, query = labelled_images.read(str(settings.support), places, source.image_set.spec)
    learner = build_predictor(state.weights, settings, path, source, len(classes))
    labels = torch.tensor(support.labels, device=device)
    learner = replace(learner, inner_objective=classification_among(labels.bincount()))
    parameters = tree_map(torch.detach, learner.method.parameters)
    with torch.no_grad():
        known = inputs(support.images, source)
        theta = adapted(learner, parameters, known, labels)
        weights = query_weights(learner, theta, parameters.phi, known, learner.inner_loop)
        logits = query_outputs(learner, weights, query, source)[:, : len(classes)]
    probabilities = logits.double().softmax(1).numpy()
    if not np.isfinite(probabilities).all():
        raise FloatingPointError(
            f"checkpoint {path}: its outputs are not finite after {learner.inner_loop} inner steps on these pictures; "
            "try a smaller inner_learning_rate or inner_loop"
        )
    kept = parameters_in_use(learner, weights, known) if settings.adapted_weights else {}
    return Prediction(classes, support, query, probabilities, kept, batch_norm(settings, learner.model))


# --- the network -------------------------------------------------------------------------------------------


def preprocessing_source(
    state: CheckpointState, settings: Settings, path: str, device: torch.device
) -> ImageTaskSampler:
    """What brings pictures into the form of the checkpoint's data set, which need not be there."""
    if isinstance(settings.dataset, Sinusoid):
        raise UserError(
            f"checkpoint {path}: learned dataset=sinusoid, which has no classes; give one that saw pictures"
        )
    return preprocessing_from_checkpoint(state, path, device)


def build_predictor(
    saved: Weights, settings: Settings, path: str, source: ImageTaskSampler, classes: int
) -> MetaLearner:
    """The checkpoint's learner, for that many classes: by the first of its outputs, or with a head of more.

    Raises:
        UserError: more classes than the method can take, or a damaged checkpoint.
    """
    check_state_shapes(settings, source, saved, path)
    learner = build_learner(settings, source, source.device)
    restore(learner, Parameters(saved.theta, saved.phi), path)
    norm = learner.norm
    if norm.rule == "per_step":
        norm = replace(norm, statistics=statistics(learner, saved, path))
    if classes > settings.ways:
        narrow, wide = learner.method.parameters, replace(settings, ways=classes)
        learner = build_learner(wide, source, source.device)
        network = dict(build_model(wide, source).named_parameters())
        try:
            restore(learner, expand_head(narrow, learner.method.parameters, network), path)
        except HeadNotExpandable as error:
            raise UserError(
                f"support={settings.support}: has {classes} classes, {settings.ways} are the most for this checkpoint, "
                f"method={settings.method.name} ({error}); take class folders away, or train with ways={classes}"
            ) from error
        log.info(
            "the run had ways=%d, here are %d classes: its head is widened; more inner steps may help, inner_loop=N",
            *(settings.ways, classes),
        )
    return replace(learner, inner_loop=eval_inner_loop(settings), norm=norm)


def statistics(learner: MetaLearner, saved: Weights, path: str) -> Tensors:
    """Of batch norm after each inner step. Raises UserError where the checkpoint was written before they were found."""
    if not saved.statistics:
        raise UserError(
            f"checkpoint {path}: was written between two validations, at which batch_norm=per_step finds its "
            "statistics; give the run folder, or its best.safetensors"
        )
    held = batch_norm_stats.zero_statistics(learner)
    copy_state_(held.tensors, saved.statistics, path)
    return held.tensors


def restore(learner: MetaLearner, saved: Parameters, path: str) -> None:
    for tensors, own in zip(learner.method.parameters, saved, strict=True):
        copy_state_(tensors, own, path)


def inputs(images: np.ndarray, source: ImageTaskSampler) -> Tensor:
    """uint8 [pictures, channels, height, width] as the data set's own images are given to the network."""
    return source.normalise_images(torch.from_numpy(images).to(source.device).float().div_(255))


def query_outputs(learner: MetaLearner, weights: Tensors, query: LabelledImages, source: ImageTaskSampler) -> Tensor:
    """[pictures, outputs], on the CPU: one batch under transductive batch norm, as it says, and lots else."""
    count = len(query.images)
    transductive = learner.norm.rule == "transductive" and is_transductive(learner.model)
    lot = count if transductive else QUERY_BATCH
    lots = (inputs(query.images[first : first + lot], source) for first in range(0, count, lot))
    return torch.cat([outputs(learner, weights, data).cpu() for data in lots])


def adapted(learner: MetaLearner, parameters: Parameters, data: Tensor, target: Tensor) -> Tensors:
    """theta_K; what the method draws is drawn as for the first test task."""
    own = method_noise(EVALUATION_SEED, "test", 0, 1, learner.method.noise(learner.inner_loop))[0].to(data.device)
    learner = replace(learner, use_second_order=False)
    return TaskLearner(learner, Task(data, target, None, None), own, autograd_gradient).adapt(parameters)[-1]


def outputs(learner: MetaLearner, weights: Tensors, data: Tensor) -> Tensor:
    """Raises UserError where a lone picture has no statistics of its own."""
    try:
        return functional_forward(learner, weights, data)
    except ValueError as error:
        if len(data) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "query: batch norm cannot normalise one picture this small by itself; give two or more"
        ) from error


def parameters_in_use(learner: MetaLearner, weights: Tensors, data: Tensor) -> Tensors:
    """The network's weights, without what a method holds beside them, such as rates: those its output depends on."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
    with torch.enable_grad():
        total = functional_forward(learner, leaves, data).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        name: tensor.detach()
        for (name, tensor), entry in zip(leaves.items(), gradients, strict=True)
        if entry is not None
    }


# --- what is left ------------------------------------------------------------------------------------------


def table(made: Prediction) -> bytes:
    """CSV: file, class, a probability for each class, and true_class where one is known."""
    known = any(label is not None for label in made.query.labels)
    rows = []
    for path, found, label, row in zip(
        made.query.files, made.found, made.query.labels, made.probabilities, strict=True
    ):
        truth = [] if not known else [""] if label is None else [made.classes[label]]
        rows.append([path, made.classes[found], *(f"{value:.6g}" for value in row), *truth])
    return csv_table(["file", "class", *made.classes, *(["true_class"] if known else [])], rows)


def weights_file(made: Prediction) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.cpu().contiguous() for name, tensor in made.weights.items()}
    return save(tensors, {"classes": json.dumps(made.classes)})


def log_summary(made: Prediction, settings: Settings) -> None:
    """The last lines, for people."""
    shots, found = Counter(made.support.labels), Counter(made.found)
    learned = [f"{printable(name)} ({shots[label]})" for label, name in enumerate(made.classes)]
    labelled = [f"{printable(made.classes[label])} ({count})" for label, count in sorted(found.items())]
    log.info(
        "inner steps: %d; classes: %d; support pictures: %s",
        eval_inner_loop(settings),
        len(shots),
        join_truncated(learned),
    )
    log.info("query pictures: %d, labelled as %s", len(made.query.files), join_truncated(labelled))
    if made.batch_norm == "transductive":
        log.info("transductive batch norm: the queries are normalised together, so a label depends on which come along")
    whole = summary(made, settings)
    if whole["accuracy"]:
        log.info("of the queries whose folder is named like a class: %s", spelt_accuracy(whole["accuracy"]))
    if whole["in_support"]:
        others = whole["accuracy_of_others"]
        log.warning(
            "query: %d of %d pictures are in the support as well, same pixels, so that the network was adapted to "
            "them and their labels say nothing of new pictures; %s",
            *(whole["in_support"], len(made.query.files)),
            f"of the others: {spelt_accuracy(others)}" if others else "no other has a known class",
        )


def summary(made: Prediction, settings: Settings) -> dict[str, Any]:
    """What prediction.json holds: the accuracy where classes are known, of all queries and of those not in support."""
    known = [label is not None for label in made.query.labels]
    right = [label == found for label, found in zip(made.query.labels, made.found, strict=True)]
    twice = made.query.in_(made.support)
    of_all = [one for one, has in zip(right, known, strict=True) if has]
    of_others = [one for one, has, there in zip(right, known, twice, strict=True) if has and not there]
    return {
        "method": settings.method.name,
        "dataset": settings.dataset.name,
        "inner_loop": eval_inner_loop(settings),
        "classes": made.classes,
        "support": len(made.support.files),
        "query": len(made.query.files),
        "in_support": sum(twice),
        "accuracy": accuracy(of_all),
        "accuracy_of_others": accuracy(of_others) if any(twice) else None,
        "interval": "Wilson score interval, 95 %",
        "batch_norm": made.batch_norm,
        "checkpoint": str(settings.checkpoint),
    }


def accuracy(right: Sequence[bool]) -> dict[str, Any] | None:
    """A fraction with its 95 % interval; None of no pictures."""
    if not right:
        return None
    low, high = wilson(sum(right), len(right))
    return {"mean": sum(right) / len(right), "low": low, "high": high, "right": sum(right), "pictures": len(right)}


def wilson(right: int, count: int) -> tuple[float, float]:
    """Ends of the 95 % score interval of a proportion (Wilson 1927); within [0, 1], and right for few pictures."""
    square = NORMAL * NORMAL / count
    share = right / count
    middle = (share + square / 2) / (1 + square)
    half = NORMAL / (1 + square) * math.sqrt((share * (1 - share) + square / 4) / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def spelt_accuracy(found: dict[str, Any]) -> str:
    ends = f"{100 * found['low']:.2f} to {100 * found['high']:.2f} %"
    return (
        f"accuracy {100 * found['mean']:.2f} %, {found['right']} of {found['pictures']} (95 % interval {ends}, Wilson)"
    )
