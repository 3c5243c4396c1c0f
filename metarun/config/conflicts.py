"""Checks of combinations of keys, before a run begins. Imports no torch.

Each check yields one message for each conflict: the key, what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from metarun.config.eval_grid import expand_eval_grid
from metarun.config.groups import OWN_SPLIT, Glyphs, Mlp, Omniglot, Sinusoid
from metarun.config.methods import Fomaml, Msgd, Mtnet, Pretrain, Warpgrad
from metarun.config.network_conflicts import check_batch_norm, check_network, check_warps
from metarun.config.schema import Settings
from metarun.errors import UserError, did_you_mean


class DatasetSize(NamedTuple):
    """Largest size of a data set; the files on disk may hold less, which is checked when they are read."""

    classes: tuple[int, int, int]  # of train, val and test
    images: int  # per class


SIZES = {  # by data set and `dataset.split`
    ("glyphs", ""): DatasetSize((1000, 150, 400), 20),
    ("omniglot", "vinyals"): DatasetSize((1028, 172, 423), 20),
    ("omniglot", "maml"): DatasetSize((1100, 100, 423), 20),
    ("omniglot", "lake"): DatasetSize((864, 100, 659), 20),
    ("cifar_fs", "bertinetto"): DatasetSize((64, 16, 20), 600),
    ("fc100", "oreshkin"): DatasetSize((60, 20, 20), 600),
    ("miniimagenet", "ravi"): DatasetSize((64, 16, 20), 600),
    ("miniimagenet", "vinyals"): DatasetSize((60, 20, 20), 600),
    ("tieredimagenet", "ren"): DatasetSize((351, 97, 160), 1300),
    ("cub", "closerlook"): DatasetSize((100, 50, 50), 60),
}
SPLITS = ("train", "val", "test")
TURNS = 4  # rotations of a character of Omniglot, each a class of its own
INNER_LOOP_KEYS = (  # keys that need an inner loop
    *("inner_loop", "inner_learning_rate", "use_second_order", "first_order_steps", "eval.inner_loop"),
    *("learn_lr", "multi_step_loss"),
)


def check_key_conflicts(settings: Settings, overridden: Sequence[str] = ()) -> None:
    """Check combinations of keys.

    Args:
        settings: values that are valid one by one.
        overridden: names of the keys that the command line sets; those without effect are refused.

    Raises:
        UserError: two keys contradict one another, or an overridden key has no effect.
    """
    checks = (
        check_order,
        check_schedule,
        check_multi_step_loss,
        check_rates,
        check_method,
        check_network,
        check_batch_norm,
        check_evaluation,
        check_task_size,
        check_ensemble,
        check_engine,
    )
    messages = [check(each) for each in expand_eval_grid(settings) for check in checks]
    for message in chain(check_overridden(settings, overridden), *messages):
        raise UserError(message)


def check_overridden(s: Settings, overridden: Sequence[str]) -> Iterator[str]:
    for name in overridden:
        if isinstance(s.method, Pretrain) and name in INNER_LOOP_KEYS:
            yield f"{name}=: method=pretrain has no inner loop to read it; leave it out"


def check_order(s: Settings) -> Iterator[str]:
    if isinstance(s.method, Fomaml) and s.use_second_order:
        yield "use_second_order=true: method=fomaml is first order; that would be method=maml"
    if s.first_order_steps and not s.use_second_order:
        yield (
            f"first_order_steps={s.first_order_steps}: second order never begins, as use_second_order=false; "
            "leave out one of the two"
        )
    if s.mode == "train" and s.first_order_steps >= s.iterations:
        yield (
            f"first_order_steps={s.first_order_steps}: second order would never begin in iterations={s.iterations}; "
            "give fewer, or use_second_order=false"
        )


def check_schedule(s: Settings) -> Iterator[str]:
    if s.outer_learning_rate_end == 0:
        return
    given = f"outer_learning_rate_end={s.outer_learning_rate_end}"
    if s.outer_schedule != "cosine":
        yield f"{given}: is read by outer_schedule=cosine only; leave it out, or give both"
    if s.outer_learning_rate_end > s.outer_learning_rate:
        yield f"{given}: is above outer_learning_rate={s.outer_learning_rate}, which falls to it; give less"


def check_multi_step_loss(s: Settings) -> Iterator[str]:
    if s.multi_step_loss == 0 or s.mode != "train":
        return
    given = f"multi_step_loss={s.multi_step_loss}"
    if s.inner_loop < 2:
        yield f"{given}: weighs the losses after each inner step, and inner_loop={s.inner_loop} has one at most; " + (
            "give more steps, or leave it out"
        )
    if isinstance(s.method, Warpgrad) and s.method.objective == "trajectory":
        yield f"{given}: method.objective=trajectory has no query loss of the initialisation to weigh; leave it out"
    if s.engine.segment is not None:
        yield f"engine.segment={s.engine.segment}: {given} judges every theta, so that each is kept; leave it out"


def check_rates(s: Settings) -> Iterator[str]:
    if s.learn_lr is None:
        return
    given = f"learn_lr={s.learn_lr}"
    if isinstance(s.method, Msgd):
        yield f"{given}: method=msgd learns rates by itself, by method.alpha; leave it out, or give method=maml"
    if s.inner_loop == 0 and s.mode == "train":
        yield f"inner_loop=0: {given} learns the sizes of inner steps, and would take none; give one or more"
    if isinstance(s.method, Warpgrad) and s.method.approximate:
        yield f"{given}: no gradient reaches the rates with method.approximate=true; leave out one of the two"


def check_method(s: Settings) -> Iterator[str]:
    method = s.method
    if s.mode == "train" and s.inner_loop == 0 and isinstance(method, (Msgd, Mtnet, Warpgrad)):
        yield (
            f"inner_loop=0: method={method.name} learns how to take inner steps, and would take none; "
            "give one or more, or method=maml"
        )
    if isinstance(method, Pretrain):
        yield from check_pretraining(s)
    if isinstance(method, Mtnet) and method.full and not method.mask:
        yield "method.full=true: is a form of the mask, and method.mask=false has none; leave out one of the two"
    if isinstance(method, Warpgrad):
        yield from check_warps(method, s.backbone)


def check_pretraining(s: Settings) -> Iterator[str]:
    if isinstance(s.dataset, Sinusoid):
        yield "method=pretrain: learns to tell classes apart, and dataset=sinusoid has none; give one of pictures"
    if s.batch_norm != "transductive":
        yield f"batch_norm={s.batch_norm}: method=pretrain has no support sets nor inner steps; leave it out"
    if s.eval.ensemble > 1:
        yield f"eval.ensemble={s.eval.ensemble}: method=pretrain is judged by class means of one network; leave it out"
    if isinstance(s.backbone, Mlp) and not s.backbone.hidden:
        yield "backbone.hidden=[]: is a head alone, and method=pretrain is for the body; give hidden layers"
    if s.mode == "predict":
        yield (
            "mode=predict: the checkpoint's method=pretrain has not learned to adapt; "
            "train one that has, as in method=maml start=RUN, and give that"
        )


def check_evaluation(s: Settings) -> Iterator[str]:
    if isinstance(s.method, Pretrain) and s.eval.details:
        yield "eval.details=true: method=pretrain is judged by class means, which are no probabilities; leave it out"
    if not isinstance(s.dataset, Sinusoid):
        return
    if s.eval.ways is not None:
        yield f"eval.ways={s.eval.ways}: dataset=sinusoid has curves, which have no classes; leave it out"
    if s.eval.details:
        yield "eval.details=true: dataset=sinusoid has no classes to confuse, nor probabilities; leave it out"


def check_task_size(s: Settings) -> Iterator[str]:
    """Check ways, shots and queries against a data set of known size."""
    data, split = s.dataset, getattr(s.dataset, "split", "")
    if isinstance(data, Omniglot) and data.rotations_of == "tasks":
        given = "dataset.rotations_of=tasks: "
        if not data.rotations:
            yield f"{given}nothing is turned with dataset.rotations=false; leave out one of the two"
        if isinstance(s.method, Pretrain) and s.mode == "train":
            yield f"{given}method=pretrain learns classes, not tasks, each turn one of its own; leave it out"
    known = {name: size for (dataset, name), size in SIZES.items() if dataset == getattr(data, "name", None)}
    if known and split not in known and not split.endswith(".json"):
        choices = ", ".join(known)
        yield f"dataset.split={split}: choose one of {choices}, or give {OWN_SPLIT}{did_you_mean(split, known)}"
    if split not in known or s.mode == "predict":
        return
    classes, images = known[split]
    turns = TURNS if isinstance(data, Omniglot) and data.rotations and data.rotations_of == "classes" else 1
    evaluating = s.mode == "evaluate"
    key, ways = ("eval.ways", s.eval.ways) if evaluating and s.eval.ways else ("ways", s.ways)
    most = turns * (classes[SPLITS.index(s.eval.split)] if evaluating else min(classes))
    if ways > most:
        counts = "/".join(str(count * turns) for count in classes)
        which = "dataset=glyphs" if isinstance(data, Glyphs) else f"dataset.split={split} of dataset={data.name}"
        yield (f"{key}={ways}: {which} has {counts} classes to train, validate and test on; {most} is the most")
    shots, queries = "eval.shots" if s.eval.shots else "shots", "eval.queries" if s.eval.queries else "queries"
    for one, two in ((shots, queries),) if evaluating else (("shots", "queries"), (shots, queries)):
        first, second = (getattr(s.eval if "." in key else s, key.rpartition(".")[2]) for key in (one, two))
        if first + second > images:
            yield (
                f"{one}={first} + {two}={second}: make {first + second} images a class, dataset={data.name} has "
                f"{images} at most; lower one of the two"
            )


def check_ensemble(s: Settings) -> Iterator[str]:
    if s.eval.ensemble > 1 and (s.eval.details or s.eval.ways not in (None, s.ways)):
        other = "eval.details=true" if s.eval.details else f"eval.ways={s.eval.ways}"
        yield f"{other}: is of one network, eval.ensemble={s.eval.ensemble} of several; leave out one of the two"
    validations = -(-s.iterations // s.eval.every)
    if s.mode == "train" and s.eval.ensemble > validations:
        yield (
            f"eval.ensemble={s.eval.ensemble}: iterations={s.iterations} with eval.every={s.eval.every} has "
            f"{validations} validations to choose from; validate more often, or give fewer"
        )


def check_engine(s: Settings) -> Iterator[str]:
    engine, method = s.engine, s.method
    if engine.segment is not None and engine.meta_gradient != "mixed":
        yield f"engine.segment={engine.segment}: is read by engine.meta_gradient=mixed only; leave it out, or give both"
    if engine.tasks == "compiled" and engine.meta_gradient == "mixed":
        yield "engine.tasks=compiled: engine.meta_gradient=mixed is not compiled; leave out one of the two"
    if engine.tasks == "compiled" and engine.precision != "float32":
        yield f"engine.tasks=compiled: engine.precision={engine.precision} is not compiled; leave out one of the two"
    if engine.precision == "tf32" and s.device == "cpu":
        yield "engine.precision=tf32: is of GPUs, and device=cpu is none; give engine.precision=float32 or bfloat16"
    if not isinstance(method, Warpgrad) or s.mode != "train":
        return
    if engine.tasks not in ("auto", "looped") and method.objective == "trajectory":
        yield (
            f"engine.tasks={engine.tasks}: method.objective=trajectory learns from one stored iterate after another; "
            "leave it out"
        )
    if engine.meta_gradient == "mixed" and method.objective == "trajectory":
        yield (
            "engine.meta_gradient=mixed: method.objective=trajectory keeps no more than its iterates anyway; "
            "leave it out"
        )
    if engine.segment is not None and method.objective == "warp_maml":
        yield (
            f"engine.segment={engine.segment}: method.objective=warp_maml looks ahead from every theta, "
            "so that each is kept; leave it out"
        )
