"""Checks of combinations of keys, before a run begins. Imports no torch.

Each check yields (key, message) for each conflict; two keys are joined by " + ". The message says what is wrong with
the value and what to do; the error begins with `key=value: `.
"""

from collections.abc import Iterator, Sequence

from metarun.config.eval_grid import expand_eval_grid
from metarun.config.groups import OWN_SPLIT, Conv4, Folder, Mlp, Omniglot, Resnet12, Sinusoid, Torchvision, choice_name
from metarun.config.methods import Boil, Fomaml, Msgd, Mtnet, Pretrain, Warpgrad
from metarun.config.schema import Settings, flatten, format_value
from metarun.errors import UserError, did_you_mean

SIZES = {  # data set, `dataset.split` -> most classes of train, val and test, and most images of a class
    ("glyphs", ""): ((1000, 150, 400), 20),
    ("omniglot", "vinyals"): ((1028, 172, 423), 20),
    ("omniglot", "maml"): ((1100, 100, 423), 20),
    ("omniglot", "lake"): ((864, 100, 659), 20),
    ("cifar_fs", "bertinetto"): ((64, 16, 20), 600),
    ("fc100", "oreshkin"): ((60, 20, 20), 600),
    ("miniimagenet", "ravi"): ((64, 16, 20), 600),
    ("miniimagenet", "vinyals"): ((60, 20, 20), 600),
    ("tieredimagenet", "ren"): ((351, 97, 160), 1300),
    ("cub", "closerlook"): ((100, 50, 50), 60),
}
SPLITS = ("train", "val", "test")
ROTATIONS = 4  # of a character of Omniglot, each a class of its own
MIN_CONV4_SIZE = 16  # pixels; conv4 halves its input four times
STAGES = 4  # of a ResNet-12
CONVOLUTIONS = tuple(f"convolutions.{i}" for i in range(3))  # of a stage
INNER_LOOP_KEYS = (  # keys that method=pretrain, which has no inner loop, does not read
    *("inner_loop", "inner_learning_rate", "use_second_order", "first_order_steps", "eval.inner_loop"),
    *("learn_lr", "multi_step_loss"),
)
ONE = "leave out one of the two"


def check_key_conflicts(settings: Settings, overridden: Sequence[str] = ()) -> None:
    """Check combinations of keys.

    Args:
        settings: values that are valid one by one.
        overridden: names of the keys that the command line sets; those without effect are refused.

    Raises:
        UserError: two keys contradict one another, or an overridden key has no effect.
    """
    for name in overridden:
        if isinstance(settings.method, Pretrain) and name in INNER_LOOP_KEYS:
            raise UserError(f"{name}=: method=pretrain has no inner loop to read it; leave it out")
    for each in expand_eval_grid(settings):
        for check in (
            *(check_outer_loop, check_inner_loop, check_pretrain, check_warpgrad, check_network, check_batch_norm),
            *(check_evaluation, check_dataset, check_task_size, check_engine),
        ):
            for keys, message in check(each):
                values = flatten(each)
                raise UserError(f"{' + '.join(f'{k}={format_value(values[k])}' for k in keys.split(' + '))}: {message}")


def check_outer_loop(s: Settings) -> Iterator[tuple[str, str]]:
    train = s.mode == "train"
    if isinstance(s.method, Fomaml) and s.use_second_order:
        yield "use_second_order", "method=fomaml is first order; for second order give method=maml"
    if s.first_order_steps and not s.use_second_order:
        yield "first_order_steps", f"second order never begins with use_second_order=false; {ONE}"
    if train and s.first_order_steps >= s.iterations:
        yield (
            "first_order_steps",
            f"second order never begins in iterations={s.iterations}; give fewer, or use_second_order=false",
        )
    if s.outer_learning_rate_end and s.outer_schedule != "cosine":
        yield "outer_learning_rate_end", "is read by outer_schedule=cosine only; leave it out, or give both"
    if s.outer_learning_rate_end > s.outer_learning_rate:
        yield "outer_learning_rate_end", f"is above outer_learning_rate={s.outer_learning_rate}; give less"
    if not train or s.multi_step_loss == 0:
        return
    if s.inner_loop < 2:
        yield "multi_step_loss", f"needs the losses of several inner steps, inner_loop={s.inner_loop}; give more steps"
    if isinstance(s.method, Warpgrad) and s.method.objective == "trajectory":
        yield "multi_step_loss", "method.objective=trajectory has no query loss after each step; leave it out"
    if s.engine.segment is not None:
        yield "engine.segment", f"multi_step_loss={s.multi_step_loss} keeps the weights of every step; leave it out"


def check_inner_loop(s: Settings) -> Iterator[tuple[str, str]]:
    method, no_steps = s.method, s.mode == "train" and s.inner_loop == 0
    if s.learn_lr is not None:
        if isinstance(method, Msgd):
            yield "learn_lr", f"method=msgd learns rates as method.alpha={method.alpha}; leave it out, or method=maml"
        if not method.linear:
            yield (
                "learn_lr",
                f"method={method.name} is not linear in the gradient, which the rates multiply; leave it out",
            )
        if no_steps:
            yield "inner_loop", f"learn_lr={s.learn_lr} learns the rates of inner steps; give one step or more"
        if isinstance(method, Warpgrad) and method.approximate:
            yield "learn_lr", f"no gradient reaches the rates with method.approximate=true; {ONE}"
    if no_steps and isinstance(method, (Msgd, Mtnet, Warpgrad)):
        yield "inner_loop", f"method={method.name} learns to take inner steps; give one or more, or method=maml"
    if isinstance(method, Mtnet) and method.full and not method.mask:
        yield "method.full", f"is a form of the mask, and method.mask=false has none; {ONE}"


def check_pretrain(s: Settings) -> Iterator[tuple[str, str]]:
    if not isinstance(s.method, Pretrain):
        return
    if isinstance(s.dataset, Sinusoid):
        yield "method", "learns to tell classes apart, and dataset=sinusoid has none; give a data set of images"
    if s.batch_norm != "transductive":
        yield "batch_norm", "method=pretrain has no support sets and no inner steps; leave it out"
    if s.eval.ensemble > 1:
        yield "eval.ensemble", "method=pretrain is evaluated by the class means of one network; leave it out"
    if isinstance(s.backbone, Mlp) and not s.backbone.hidden:
        yield "backbone.hidden", "is a head alone, and method=pretrain trains the body; give hidden layers"
    if s.eval.details:
        yield "eval.details", "method=pretrain is evaluated by class means, which give no probabilities; leave it out"
    if s.mode == "predict":
        yield "mode", "method=pretrain has not learned to adapt; give a run of method=maml start=RUN, for example"
    if s.mode == "train" and isinstance(s.dataset, Omniglot) and s.dataset.rotations_of == "tasks":
        yield "dataset.rotations_of", "method=pretrain learns classes, not tasks; leave it out"


def check_warpgrad(s: Settings) -> Iterator[tuple[str, str]]:
    method, backbone = s.method, s.backbone
    if not isinstance(method, Warpgrad):
        return
    if method.initialisation != "leap" and method.objective != "trajectory":
        yield "method.initialisation", f"is read by method.objective=trajectory, not by {method.objective}; {ONE}"
    if method.approximate and method.objective == "unrolled":
        yield "method.approximate", f"method.objective=unrolled has no look-ahead step; {ONE}"
    if method.kernel % 2 == 0:
        yield "method.kernel", "must be an odd number, since an even one would change the image's size"
    if isinstance(backbone, Mlp):
        if not backbone.hidden and method.after is None:
            yield "backbone.hidden", "method=warpgrad has no layer to follow in a linear model; give hidden layers"
        for name in ("kernel", "norm"):
            if getattr(method, name) != getattr(Warpgrad, name):
                yield f"method.{name}", "is for convolutions, which backbone=mlp does not have; leave it out"
    modules = warpable_modules(backbone)
    if method.after == []:
        yield "method.after", "names no module to put a warp layer behind; null puts one behind each block"
    for name in method.after or ():
        if modules and name not in modules:
            hint = did_you_mean(name, modules)
            yield (
                "method.after",
                f"{name!r} is no module to put a warp layer behind; choose from {', '.join(modules)}{hint}",
            )
        if (method.after or []).count(name) > 1:
            yield "method.after", f"names {name!r} twice; a module has one warp"


def warpable_modules(backbone: object) -> list[str]:
    """Names of the modules of a backbone that a warp layer can follow; empty if they are not known without torch."""
    if isinstance(backbone, Mlp):
        return [f"layers.{i}" for i in range(len(backbone.hidden) + 1)]
    if not isinstance(backbone, (Conv4, Resnet12)):
        return []
    blocks = [f"blocks.{i}" for i in range(STAGES)]
    inside = ("convolution",) if isinstance(backbone, Conv4) else (*CONVOLUTIONS, "shortcut")
    return ["blocks", *blocks, *(f"{block}.{name}" for block in blocks for name in inside), "head"]


def check_network(s: Settings) -> Iterator[tuple[str, str]]:
    backbone, size = s.backbone, s.dataset.size if isinstance(s.dataset, Folder) else float("inf")
    if not isinstance(backbone, Mlp) and isinstance(s.dataset, Sinusoid):
        yield "backbone", "takes images, and dataset=sinusoid has points of a curve; give backbone=mlp"
    if isinstance(backbone, Mlp) and not backbone.hidden and isinstance(s.method, Boil):
        yield "backbone.hidden", "is a head alone, and method=boil adapts all but the head; give hidden layers"
    if isinstance(backbone, Resnet12):
        if len(backbone.filters) != STAGES:
            yield "backbone.filters", f"resnet12 has {STAGES} stages; give a number for each, [A,B,C,D]"
        if size < 2**backbone.pools:
            least = f"{2**backbone.pools} is the least"
            yield "dataset.size", f"backbone.pools={backbone.pools} halves images as often, {least}; give fewer pools"
    if isinstance(backbone, Conv4):
        if backbone.downsample == "pool" and size < MIN_CONV4_SIZE:
            least = f"{MIN_CONV4_SIZE} is the least"
            yield "dataset.size", f"is halved four times, {least}; give more, or backbone.downsample=stride"
        if backbone.downsample == "stride" and backbone.norm == "instance" and size <= MIN_CONV4_SIZE:
            yield "dataset.size", f"backbone.norm=instance of one pixel is 0; give more than {MIN_CONV4_SIZE}"


def check_batch_norm(s: Settings) -> Iterator[tuple[str, str]]:
    norm = getattr(s.backbone, "norm", "")
    may_have = norm == "batch" or isinstance(s.backbone, Torchvision) or getattr(s.method, "norm", False)
    if s.batch_norm != "transductive" and not may_have:
        what = f"backbone.norm={norm}" if norm else f"backbone={choice_name(s.backbone)}"
        yield "batch_norm", f"{what} has no batch norm; leave it out"
    if s.batch_norm == "per_step" and s.inner_loop == 0 and s.mode == "train":
        yield "inner_loop", "batch_norm=per_step has an affine for each inner step; give one step or more"
    if s.batch_norm == "per_step" and isinstance(s.method, (Boil, Warpgrad)):
        yield "batch_norm", f"method={s.method.name} adapts one affine over all steps; give batch_norm=support"


def check_evaluation(s: Settings) -> Iterator[tuple[str, str]]:
    if isinstance(s.dataset, Sinusoid):
        if s.eval.ways is not None:
            yield "eval.ways", "dataset=sinusoid has curves, which have no classes; leave it out"
        if s.eval.details:
            yield "eval.details", "dataset=sinusoid has no classes and no probabilities; leave it out"
    if s.eval.ensemble > 1 and (s.eval.details or s.eval.ways not in (None, s.ways)):
        key = "eval.details" if s.eval.details else "eval.ways"
        yield key, f"is for one network, eval.ensemble={s.eval.ensemble} has several; {ONE}"
    validations = -(-s.iterations // s.eval.every)
    if s.mode == "train" and s.eval.ensemble > validations:
        yield (
            "eval.ensemble",
            f"iterations={s.iterations} with eval.every={s.eval.every} has {validations} validations to choose from; "
            "validate more often, or give fewer",
        )


def check_dataset(s: Settings) -> Iterator[tuple[str, str]]:
    data, split = s.dataset, getattr(s.dataset, "split", "")
    if isinstance(data, Omniglot) and data.rotations_of == "tasks" and not data.rotations:
        yield "dataset.rotations_of", f"dataset.rotations=false rotates nothing; {ONE}"
    known = [name for dataset, name in SIZES if dataset == data.name]
    if known and split not in known and not split.endswith(".json"):
        yield "dataset.split", f"choose one of {', '.join(known)}, or give {OWN_SPLIT}{did_you_mean(split, known)}"


def check_task_size(s: Settings) -> Iterator[tuple[str, str]]:
    """Check ways, shots and queries against a data set of known size; its files are counted when they are read."""
    data, split, evaluate = s.dataset, getattr(s.dataset, "split", ""), s.mode == "evaluate"
    if (data.name, split) not in SIZES or s.mode == "predict":
        return
    classes, images = SIZES[data.name, split]
    if isinstance(data, Omniglot) and data.rotations and data.rotations_of == "classes":
        classes = tuple(ROTATIONS * count for count in classes)
    key = "eval.ways" if evaluate and s.eval.ways else "ways"
    most = classes[SPLITS.index(s.eval.split)] if evaluate else min(classes)
    values = flatten(s)
    if values[key] > most:
        counts = "/".join(map(str, classes))
        which = f"dataset.split={split} of dataset={data.name}" if split else f"dataset={data.name}"
        yield key, f"{which} has {counts} classes to train, validate and test on; {most} is the most"
    evaluated = tuple(f"eval.{name}" if values[f"eval.{name}"] else name for name in ("shots", "queries"))
    for shots, queries in (evaluated,) if evaluate else (("shots", "queries"), evaluated):
        if (total := values[shots] + values[queries]) > images:
            at_most = f"dataset={data.name} has {images} at most"
            yield f"{shots} + {queries}", f"make {total} images a class, {at_most}; lower one of the two"


def check_engine(s: Settings) -> Iterator[tuple[str, str]]:
    engine = s.engine
    if engine.segment is not None and engine.meta_gradient != "mixed":
        yield "engine.segment", "is read by engine.meta_gradient=mixed only; leave it out, or give both"
    if engine.tasks == "compiled" and engine.meta_gradient == "mixed":
        yield "engine.tasks", f"engine.meta_gradient=mixed is not compiled; {ONE}"
    if engine.tasks == "compiled" and engine.precision != "float32":
        yield "engine.tasks", f"engine.precision={engine.precision} is not compiled; {ONE}"
    if engine.precision == "tf32" and s.device == "cpu":
        yield "engine.precision", "needs a GPU, and device=cpu is none; give engine.precision=float32 or bfloat16"
    if not isinstance(s.method, Warpgrad) or s.mode != "train":
        return
    if s.method.objective == "trajectory":
        if engine.tasks not in ("auto", "looped"):
            yield "engine.tasks", "method.objective=trajectory learns from stored iterates in order; leave it out"
        if engine.meta_gradient == "mixed":
            yield "engine.meta_gradient", "method.objective=trajectory stores its iterates alone anyway; leave it out"
    if engine.segment is not None and s.method.objective == "warp_maml":
        yield "engine.segment", "method.objective=warp_maml keeps the weights of every step; leave it out"
