"""From config objects and checkpoints to typed `Settings`, and how a checkpoint's settings meet what is typed now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.checkpointing import store
from metarun.cli.errors import user_message
from metarun.config import conflicts, paths
from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import INVOCATION_KEYS, MACHINE_KEYS, Settings, check, flatten, iter_options
from metarun.errors import UserError, relative_to_cwd
from metarun.report import runs
from metarun.utils.run_dir import AUTO

RESUME_OVERRIDABLE = (
    *INVOCATION_KEYS,
    "iterations",
    "skip_not_finite",
    "device",
    "data_dir",
    "cache_dir",
    "download",
    "dataset.root",
)  # a resumed run may change these
FREE_NODES = ("eval.", "save.", "engine.")  # and these
PREDICT_OVERRIDABLE = ("inner_loop", "inner_learning_rate", "batch_norm")  # and a prediction these
EVAL_OVERRIDABLE = (*PREDICT_OVERRIDABLE, "dataset", "shots", "queries")  # and an evaluation these as well


def more_steps(count: int, *, _root_: DictConfig) -> int | None:
    """Inner steps of a data set's evaluation beyond those of training, where the method's update stays the trained one.

    None, as in training, with a method that learns something for the trained steps, or with learned rates.
    """
    method = CONFIG_GROUPS["method"].get(OmegaConf.select(_root_, "method.name"))
    goes_on = getattr(method, "any_step", False) and OmegaConf.select(_root_, "learn_lr") is None
    return count if goes_on else None


OmegaConf.register_new_resolver("metarun.more_steps", more_steps, replace=True)  # configs/dataset/sinusoid.yaml


def build(config: DictConfig, typed: Sequence[str] = ()) -> Settings:
    """The composed config as checked settings, of which the keys `typed` were given by hand; Hydra's node is left out.

    Raises:
        UserError: a value that is missing, of the wrong type, outside of its range or at odds with another.
    """
    try:
        own = OmegaConf.masked_copy(config, [item.name for item in fields(Settings)])
        for name in OmegaConf.missing_keys(own):
            if (config.resume in (None, AUTO) and config.checkpoint is None) or name.partition(".")[0] in typed:
                raise UserError(f"{name}=???: needs a value, {meaning(name)}")
            OmegaConf.update(own, name, "")  # the checkpoint has one
        schema = OmegaConf.structured(Settings)
        for group in CONFIG_GROUPS:
            schema[group] = OmegaConf.structured(choice_of(group, own[group]))
        settings = OmegaConf.to_object(OmegaConf.merge(schema, own))
    except OmegaConfBaseException as error:
        raise UserError(user_message(error)) from error
    assert isinstance(settings, Settings)
    check(settings)
    if settings.mode == "report" and (others := [name for name in typed if name not in ("mode", "runs")]):
        raise UserError(f"{others[0]}: mode=report reads runs= alone, each run has its own settings; leave it out")
    if checkpoint_of(settings) is None:  # else most of its values are to be put in their places
        reset_dependent_eval_options(settings, typed)
        conflicts.check_key_conflicts(settings, typed)
        paths.check(settings)
        if settings.mode == "report":
            runs.folders(settings.runs)
    return settings


def choice_of(group: str, node: Any) -> type:
    """The class of the choice that a config of group `group` is, be it a file of one's own with its name and values.

    Raises:
        UserError: nothing is chosen, or a file that is not based on a known choice.
    """
    choices = CONFIG_GROUPS[group]
    known = ", ".join(choices)
    if not isinstance(node, DictConfig):
        raise UserError(f"{group}: nothing is chosen; choose one of {known}")
    name = OmegaConf.select(node, "name")
    if isinstance(name, str) and name in choices:
        return choices[name]
    how = f"begin the file with `name: X`, or with `defaults: [X, _self_]`, where X is one of {known}"
    if name is None:
        raise UserError(f"{group}: the file that is chosen does not say which {group} its values are of; {how}")
    raise UserError(
        f"{group}: the file that is chosen has the name {str(name)!r}, and there is no code of such a {group}: a file "
        f"sets the values of a known one; {how}"
    )


def checkpoint_of(settings: Settings) -> str | None:
    """The run or checkpoint whose settings are taken."""
    return settings.checkpoint if settings.resume in (None, AUTO) else settings.resume


def meaning(name: str) -> str:
    """What a key is for, be it one of a group's choice."""
    nodes = [
        ("", Settings),
        *((f"{group}.", node) for group, choices in CONFIG_GROUPS.items() for node in choices.values()),
    ]
    return next(
        item.metadata["help"] for prefix, node in nodes for key, item, _ in iter_options(node, prefix) if key == name
    )


def choices(place: Path, resume: bool, typed: Sequence[str]) -> list[str]:
    """`GROUP=CHOICE` for each group of a checkpoint that is not among the `typed` names: the names of `GROUPS`, no text
    of the file's.

    Raises:
        UserError: no checkpoint is there, or it is damaged.
    """
    saved = store.load_settings(store.latest_intact_checkpoint(place) if resume else place)
    return [
        f"{group}={name}"
        for group, nodes in CONFIG_GROUPS.items()
        for name, node in nodes.items()
        if group not in typed and type(getattr(saved, group)) is node
    ]


def merge_with_checkpoint(now: Settings, typed: Sequence[str]) -> Settings:
    """`now`, or the settings of the checkpoint that it names, changed by the keys and groups that are `typed`.

    Raises:
        UserError: a typed key that a resumed run cannot change, or that the checkpoint's choices do not have.
    """
    place = checkpoint_of(now)
    if place is None:
        return now
    asked = f"resume={place}" if now.resume else f"checkpoint={place}"
    if "experiment" in typed:  # which the checkpoint does not record
        raise UserError(f"{asked}: it brings its own settings; leave experiment= out and type the keys to change")
    path = Path(place).expanduser()
    settings = store.load_settings(store.latest_intact_checkpoint(path) if now.resume else path)
    iterations, trained, norm = settings.iterations, settings.inner_loop, settings.batch_norm
    for name in INVOCATION_KEYS:
        setattr(settings, name, getattr(now, name))
    if now.mode == "evaluate" and "ways" in typed:  # the network stays as wide as it is
        settings.eval.ways = now.ways
    for name in typed:
        if name == "ways" and now.mode == "evaluate":
            continue
        if not is_free(name, now.mode, resumed=now.resume is not None):
            refuse_change(name, now, settings, asked)
        copy_option(name, now, settings, asked)
    take_machine_s(settings, now)
    reset_dependent_eval_options(settings, typed)
    keep_trained_steps(settings, trained)
    choose_networks(settings, typed, path)
    if settings.batch_norm != norm and "per_step" in (settings.batch_norm, norm):
        raise UserError(
            f"{asked}: batch_norm={settings.batch_norm} differs from the run's {norm}, and per_step has an affine for "
            "each step, learned in training; leave it out"
        )
    if now.resume and settings.iterations != iterations and settings.outer_schedule == "cosine":
        raise UserError(f"{asked}: iterations={settings.iterations} would bend outer_schedule=cosine of {iterations}")
    check(settings)
    conflicts.check_key_conflicts(settings, typed)
    paths.check(settings)
    return settings


def check_resume_settings(now: Settings, folder: Path) -> None:
    """Raises UserError where the folder holds a run with other settings, but for those of `ELSEWHERE`."""
    if not store.list_step_checkpoints(folder):
        return
    saved = flatten(store.load_settings(store.latest_intact_checkpoint(folder)))
    for name, value in flatten(now).items():
        free = name in (*MACHINE_KEYS, "dataset.root") or (name.startswith("engine.") and name != "engine.precision")
        if not free and saved.get(name) != value:
            raise UserError(
                f"resume=auto: the run in {relative_to_cwd(folder)} has {name}={saved.get(name)}, not {value}; "
                "start it with the same settings, or in another folder"
            )


def is_free(name: str, mode: str, resumed: bool) -> bool:
    """Whether key or group `name` may differ from the checkpoint's."""
    if resumed:
        return name in RESUME_OVERRIDABLE or (name.startswith(FREE_NODES) and name != "eval.ensemble")
    if mode == "predict":
        return name in (*RESUME_OVERRIDABLE, *PREDICT_OVERRIDABLE) or name.startswith(FREE_NODES)
    return name in (*RESUME_OVERRIDABLE, *EVAL_OVERRIDABLE) or name.startswith((*FREE_NODES, "dataset."))


def reset_dependent_eval_options(settings: Settings, typed: Sequence[str]) -> None:
    """Evaluation follows what is typed for training, unless its own key is typed too."""
    for name in ("shots", "queries", "inner_loop"):
        if name in typed and f"eval.{name}" not in typed:
            setattr(settings.eval, name, None)


def take_machine_s(settings: Settings, now: Settings) -> None:
    """What names a place that is written to is of this command, never of a file that a stranger may have made.

    A saved `data_dir` is read, since the data lie where they lay, but nothing is downloaded into it.
    """
    settings.cache_dir = now.cache_dir
    settings.download = now.download and settings.data_dir == now.data_dir


def keep_trained_steps(settings: Settings, trained: int) -> None:
    """Another inner loop than that in training is one of the evaluation, where something was learned for each step."""
    each_step = settings.learn_lr == "tensor_step" or settings.batch_norm == "per_step"
    if each_step and settings.inner_loop != trained:
        if settings.eval.inner_loop is None:
            settings.eval.inner_loop = settings.inner_loop
        settings.inner_loop = trained


def choose_networks(settings: Settings, typed: Sequence[str], path: Path) -> None:
    """A run's ensemble is of its folder; a checkpoint file and a prediction are of one network."""
    if settings.mode == "predict" or (settings.mode == "evaluate" and path.is_file()):
        if "eval.ensemble" in typed and settings.eval.ensemble > 1:
            what = "mode=predict labels" if settings.mode == "predict" else f"checkpoint={path} is one file, and judges"
            raise UserError(f"eval.ensemble={settings.eval.ensemble}: {what} by one network; leave it out")
        settings.eval.ensemble = 1


def refuse_change(name: str, now: Settings, saved: Settings, asked: str) -> None:
    """Raise UserError where key or group `name` is not as the run was started with."""
    for key, value in flatten_group(name, now).items():
        old = flatten_group(name, saved).get(key)
        if value != old:
            raise UserError(f"{asked}: {key}={value} differs from the run's {old}; start a new run or leave it out")


def flatten_group(name: str, settings: Settings) -> dict[str, Any]:
    """The values below key or group `name`, by their dotted names."""
    if name in CONFIG_GROUPS:
        return {name if key == "name" else f"{name}.{key}": v for key, v in asdict(getattr(settings, name)).items()}
    return {key: value for key, _, value in iter_options(settings) if key == name}


def copy_option(name: str, now: Settings, saved: Settings, asked: str) -> None:
    """Set key or group `name` of `saved` to what it is now."""
    *path, last = name.split(".")
    node = reduce(getattr, path, saved)
    if not hasattr(node, last):
        raise UserError(f"{asked}: its {path[0]} has no key {name}")
    setattr(node, last, getattr(reduce(getattr, path, now), last))
