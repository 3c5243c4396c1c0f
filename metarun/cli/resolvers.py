"""Resolvers `${metarun.*}` of configs/config.yaml: the run folder, checks before it is created, and the help text."""

from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun.cli import settings, sweeps
from metarun.cli.overrides import overridden_keys, task_overrides
from metarun.config import paths
from metarun.config.groups import CONFIG_GROUPS, FORMS, choices
from metarun.config.methods import METHODS
from metarun.config.schema import Settings
from metarun.errors import UserError
from metarun.utils import run_dir_lock
from metarun.utils.run_dir_lock import AUTO

AUTO_NEEDS = "continues the run in a given folder, and a new folder would be empty"
created_run_dirs: list[Path] = []  # folders created for this command


def user_overrides(hydra: Any) -> list[str]:
    """Overrides of the command line, without the group choices that were added for a checkpoint."""
    return [text for text in task_overrides(hydra) if text not in sweeps.CheckpointChoices().choices]


def validate_before_run_dir(*, _root_: DictConfig) -> str:
    """Resolver `${metarun.checked:}`: checks the settings before Hydra creates the run folder. Returns "".

    Raises:
        UserError: the settings are invalid, or the run folder is not free.
    """
    # Hydra resolves this after each job of a sweep, too.
    if sweeps.sweep_configs:
        return ""
    node = "sweep" if _root_.hydra.mode == RunMode.MULTIRUN else "run"
    if node == "sweep":
        sweeps.check_sweep(_root_)
    else:
        settings.build(_root_, list(overridden_keys(user_overrides(_root_.hydra))))
    configured = dict(_root_.hydra[node].items_ex(resolve=False))["dir"]
    if "${metarun." in str(configured):
        return ""  # a new folder, or the folder of resume=RUN
    folder = Path(str(_root_.hydra[node].dir)).absolute()
    if node == "sweep":
        run_dir_lock.require_free_sweep(folder, _root_.resume)
    else:
        run_dir_lock.require_free(folder, _root_.mode, _root_.resume)
    if not folder.exists():
        created_run_dirs.append(folder)
    return ""


def run_folder(resume: str | None) -> str:
    """Resolver `${metarun.run_folder:}`: the folder of the resumed run, or a new folder below outputs/."""
    if resume == AUTO:
        raise UserError(f"resume=auto: {AUTO_NEEDS}, give hydra.run.dir=FOLDER")
    return create_run_dir(Path("outputs")) if resume is None else str(paths.existing_path("resume", str(resume)))


def sweep_folder(resume: str | None) -> str:
    """Resolver `${metarun.sweep_folder:}`: a new folder below outputs/multirun/."""
    if resume == AUTO:
        raise UserError(f"resume=auto: {AUTO_NEEDS}, give hydra.sweep.dir=FOLDER")
    return create_run_dir(Path("outputs/multirun"))


def create_run_dir(parent: Path) -> str:
    """Create parent/<date>/<time> and return its path; -2, -3, ... is appended if it exists already."""
    now = datetime.now()
    day = parent / f"{now:%Y-%m-%d}"
    try:
        day.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"no run folder can be made in {day.absolute()} ({error.strerror}); give hydra.run.dir=FOLDER"
        ) from error
    number = 1
    while True:
        folder = day / (f"{now:%H-%M-%S}" if number == 1 else f"{now:%H-%M-%S}-{number}")
        try:
            folder.mkdir()
            created_run_dirs.append(folder)
            return str(folder)
        except FileExistsError:
            number += 1


def remove_empty_sweep_dirs() -> None:
    """Remove the folders created for a refused command if they are empty, and up to three empty parents of each."""
    for folder in created_run_dirs:
        if folder.is_dir() and [path.name for path in folder.iterdir()] in ([], [run_dir_lock.SWEEP]):
            (folder / run_dir_lock.SWEEP).unlink(missing_ok=True)
            for empty in (folder, *folder.parents[:3]):
                if empty == Path() or any(empty.iterdir()):
                    break
                empty.rmdir()


def register() -> None:
    """Register the schema with Hydra, and the resolvers of configs/config.yaml with OmegaConf."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Settings)
    for group, nodes in CONFIG_GROUPS.items():
        for name, node in nodes.items():  # below schema/, so that --help does not list them as choices
            store.store(group=f"schema/{group}", name=name, node=node)
    for name, node in METHODS.items():  # data sets have files, with values for all keys
        if node.defaults:
            defaults = [{"/schema/method@method": name}, "_self_"]
            store.store(name, {"defaults": defaults, **node.defaults}, group="method", package="_global_")
        else:
            store.store(group="method", name=name, node={"defaults": [{"/schema/method@_here_": name}]})
    for name in choices("backbone"):
        values = dict(FORMS.get(name, {"name": name}))
        defaults = [{"/schema/backbone@_here_": values.pop("name")}, "_self_"]
        store.store(group="backbone", name=name, node={"defaults": defaults, **values})
    OmegaConf.register_new_resolver("metarun.checked", validate_before_run_dir, replace=True)
    OmegaConf.register_new_resolver("metarun.run_folder", run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("metarun.sweep_folder", sweep_folder, use_cache=True, replace=True)
