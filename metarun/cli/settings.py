"""Builds `Settings` from Hydra's config, and merges the settings of a checkpoint with those of the command line."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.checkpointing import store
from metarun.cli.errors import KEYS, user_message
from metarun.config import conflicts, paths
from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import INVOCATION_KEYS, MACHINE_KEYS, Settings, check, flatten, iter_options
from metarun.errors import UserError, relative_to_cwd
from metarun.report import runs
from metarun.utils.run_dir_lock import AUTO

RESUME_OVERRIDABLE = (  # keys that may differ from the checkpoint's when a run is resumed
    *(*INVOCATION_KEYS, "iterations", "skip_not_finite", "device", "data_dir", "cache_dir", "download", "dataset.root"),
)
FREE_NODES = ("eval.", "save.", "engine.")  # groups of keys that may always differ
PREDICT_OVERRIDABLE = ("inner_loop", "inner_learning_rate", "batch_norm")  # may differ in mode=predict as well
EVAL_OVERRIDABLE = (*PREDICT_OVERRIDABLE, "dataset", "shots", "queries")  # may differ in mode=evaluate as well


def more_steps(count: int, *, _root_: DictConfig) -> int | None:
    """Resolver `${metarun.more_steps:N}`: N evaluation steps for methods that may take more steps than in training.

    Returns None, which means as in training, if the method learns something for each step or `learn_lr` is set.
    """
    method = CONFIG_GROUPS["method"].get(OmegaConf.select(_root_, "method.name"))
    any_step = getattr(method, "any_step", False) and OmegaConf.select(_root_, "learn_lr") is None
    return count if any_step else None


OmegaConf.register_new_resolver("metarun.more_steps", more_steps, replace=True)  # configs/dataset/sinusoid.yaml


def build(config: DictConfig, overridden: Sequence[str] = ()) -> Settings:
    """Convert the composed Hydra config to validated `Settings`.

    Args:
        config: the composed config; its `hydra` node is ignored.
        overridden: names of the keys and groups that the command line sets.

    Raises:
        UserError: a value is missing, of the wrong type, out of range or in conflict with another.
    """
    try:
        values = OmegaConf.masked_copy(config, [item.name for item in fields(Settings)])
        for name in OmegaConf.missing_keys(values):
            if (config.resume in (None, AUTO) and config.checkpoint is None) or name.partition(".")[0] in overridden:
                raise UserError(f"{name}=???: needs a value, {KEYS[name]}")
            OmegaConf.update(values, name, "")  # the checkpoint sets it
        schema = OmegaConf.structured(Settings)
        for group in CONFIG_GROUPS:
            schema[group] = OmegaConf.structured(config_class(group, values[group]))
        settings = OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        raise UserError(user_message(error)) from error
    assert isinstance(settings, Settings)
    check(settings)
    if settings.mode == "report" and (others := [name for name in overridden if name not in ("mode", "runs")]):
        raise UserError(f"{others[0]}: mode=report reads runs= only, since each run has its own settings; leave it out")
    if checkpoint_of(settings) is None:  # else `merge_with_checkpoint` checks the merged settings
        reset_dependent_eval_options(settings, overridden)
        conflicts.check_key_conflicts(settings, overridden)
        paths.check(settings)
        if settings.mode == "report":
            runs.folders(settings.runs)
    return settings


def config_class(group: str, node: Any) -> type:
    """The config dataclass that the `name` in the config `node` of a group stands for.

    Raises:
        UserError: nothing is chosen, or a config file of the user's has no or an unknown name.
    """
    choices = CONFIG_GROUPS[group]
    known = ", ".join(choices)
    if not isinstance(node, DictConfig):
        raise UserError(f"{group}: nothing is chosen; choose one of {known}")
    name = OmegaConf.select(node, "name")
    if isinstance(name, str) and name in choices:
        return choices[name]
    problem = f"does not say which {group} its values are of"
    if name is not None:
        problem = (
            f"has the name {str(name)!r}, and there is no code of such a {group}: a file sets the values of a known one"
        )
    raise UserError(
        f"{group}: the file that is chosen {problem}; begin the file with `name: X`, or with "
        f"`defaults: [X, _self_]`, where X is one of {known}"
    )


def checkpoint_of(settings: Settings) -> str | None:
    """Path of the run folder or checkpoint whose settings are used: `checkpoint=`, or `resume=` if it names a run."""
    return settings.checkpoint if settings.resume in (None, AUTO) else settings.resume


def checkpoint_choices(path: Path, resume: bool, overridden: Sequence[str]) -> list[str]:
    """Overrides `GROUP=CHOICE` for each group of a checkpoint that is not `overridden`.

    The choices are names from `CONFIG_GROUPS`, so no text of the file reaches Hydra.

    Args:
        path: a run folder or checkpoint file; with `resume`, a run folder.
        resume: take the latest intact checkpoint instead of the best.
        overridden: names of the keys and groups that the command line sets.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    saved = store.load_settings(store.latest_intact_checkpoint(path) if resume else path)
    return [
        f"{group}={name}"
        for group, nodes in CONFIG_GROUPS.items()
        for name, node in nodes.items()
        if group not in overridden and type(getattr(saved, group)) is node
    ]


def merge_with_checkpoint(current: Settings, overridden: Sequence[str]) -> Settings:
    """Settings of the checkpoint that `current` names, changed by the overridden keys. `current` if it names none.

    Args:
        current: settings of the command line.
        overridden: names of the keys and groups that the command line sets.

    Raises:
        UserError: a key that a resumed run cannot change, or that the checkpoint's choices do not have.
    """
    checkpoint = checkpoint_of(current)
    if checkpoint is None:
        return current
    source = f"resume={checkpoint}" if current.resume else f"checkpoint={checkpoint}"
    if "experiment" in overridden:  # which the checkpoint does not record
        raise UserError(f"{source}: it brings its own settings; leave experiment= out and type the keys to change")
    path = Path(checkpoint).expanduser()
    settings = store.load_settings(store.latest_intact_checkpoint(path) if current.resume else path)
    iterations, inner_loop, batch_norm = settings.iterations, settings.inner_loop, settings.batch_norm
    for name in INVOCATION_KEYS:
        setattr(settings, name, getattr(current, name))
    if current.mode == "evaluate" and "ways" in overridden:  # the network's head keeps its size
        settings.eval.ways = current.ways
    for name in overridden:
        if name == "ways" and current.mode == "evaluate":
            continue
        if not may_change(name, current.mode, resumed=current.resume is not None):
            check_unchanged(name, current, settings, source)
        copy_option(name, current, settings, source)
    settings.cache_dir = current.cache_dir  # the checkpoint may be a stranger's: it names no folder to write to
    settings.download = current.download and settings.data_dir == current.data_dir
    reset_dependent_eval_options(settings, overridden)
    keep_trained_steps(settings, inner_loop)
    limit_ensemble(settings, overridden, path)
    if settings.batch_norm != batch_norm and "per_step" in (settings.batch_norm, batch_norm):
        raise UserError(
            f"{source}: batch_norm={settings.batch_norm} differs from the run's {batch_norm}, and per_step has "
            "an affine for each step, learned in training; leave it out"
        )
    if current.resume and settings.iterations != iterations and settings.outer_schedule == "cosine":
        raise UserError(
            f"{source}: iterations={settings.iterations} would change outer_schedule=cosine of {iterations}; "
            "leave iterations= out, or start a new run"
        )
    check(settings)
    conflicts.check_key_conflicts(settings, overridden)
    paths.check(settings)
    return settings


def check_resume_settings(current: Settings, folder: Path) -> None:
    """Raise UserError if `folder` holds a run with other settings; keys of the machine and the engine may differ."""
    if not store.list_step_checkpoints(folder):
        return
    saved = flatten(store.load_settings(store.latest_intact_checkpoint(folder)))
    for name, value in flatten(current).items():
        free = name in (*MACHINE_KEYS, "dataset.root") or (name.startswith("engine.") and name != "engine.precision")
        if not free and saved.get(name) != value:
            raise UserError(
                f"resume=auto: the run in {relative_to_cwd(folder)} has {name}={saved.get(name)}, not {value}; "
                "start it with the same settings, or in another folder"
            )


def may_change(name: str, mode: str, resumed: bool) -> bool:
    """Whether key or group `name` may differ from the checkpoint's settings."""
    if resumed:
        return name in RESUME_OVERRIDABLE or (name.startswith(FREE_NODES) and name != "eval.ensemble")
    if mode == "predict":
        return name in (*RESUME_OVERRIDABLE, *PREDICT_OVERRIDABLE) or name.startswith(FREE_NODES)
    return name in (*RESUME_OVERRIDABLE, *EVAL_OVERRIDABLE) or name.startswith((*FREE_NODES, "dataset."))


def reset_dependent_eval_options(settings: Settings, overridden: Sequence[str]) -> None:
    """Clear `eval.shots` (`queries`, `inner_loop`) if only `shots` is overridden, so that evaluation follows it."""
    for name in ("shots", "queries", "inner_loop"):
        if name in overridden and f"eval.{name}" not in overridden:
            setattr(settings.eval, name, None)


def keep_trained_steps(settings: Settings, inner_loop: int) -> None:
    """Apply a changed `inner_loop` to evaluation only if the checkpoint has parameters for each inner step.

    Args:
        settings: merged settings, changed in place.
        inner_loop: inner steps of training.
    """
    each_step = settings.learn_lr == "tensor_step" or settings.batch_norm == "per_step"
    if each_step and settings.inner_loop != inner_loop:
        if settings.eval.inner_loop is None:
            settings.eval.inner_loop = settings.inner_loop
        settings.inner_loop = inner_loop


def limit_ensemble(settings: Settings, overridden: Sequence[str], path: Path) -> None:
    """Set `eval.ensemble` to 1 for a prediction and for a single checkpoint file.

    Raises UserError if the command line sets a larger one.
    """
    if settings.mode == "predict" or (settings.mode == "evaluate" and path.is_file()):
        if "eval.ensemble" in overridden and settings.eval.ensemble > 1:
            what = "mode=predict uses" if settings.mode == "predict" else f"checkpoint={path} is"
            raise UserError(f"eval.ensemble={settings.eval.ensemble}: {what} one network; leave it out")
        settings.eval.ensemble = 1


def check_unchanged(name: str, current: Settings, saved: Settings, source: str) -> None:
    """Raise UserError if a value of key or group `name` differs from that of the saved settings."""

    def values(settings: Settings) -> dict[str, Any]:
        if name not in CONFIG_GROUPS:
            return {key: value for key, _, value in iter_options(settings) if key == name}
        return {name if k == "name" else f"{name}.{k}": v for k, v in asdict(getattr(settings, name)).items()}

    old = values(saved)
    for key, value in values(current).items():
        if value != old.get(key):
            raise UserError(
                f"{source}: {key}={value} differs from the run's {old.get(key)}; start a new run or leave it out"
            )


def copy_option(name: str, current: Settings, saved: Settings, source: str) -> None:
    """Copy the value of key or group `name` from the command line's settings to the saved ones."""
    *path, last = name.split(".")
    node = reduce(getattr, path, saved)
    if not hasattr(node, last):
        raise UserError(f"{source}: its {path[0]} has no key {name}")
    setattr(node, last, getattr(reduce(getattr, path, current), last))
