"""The command: reads what was typed through Hydra and hands plain settings to the runner.

Torch is imported when work begins, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun import __version__
from metarun.cli import help, settings, sweep_progress, sweeps
from metarun.cli.errors import CONFIG_GROUP_NAMES, USER_ERRORS, user_message
from metarun.cli.overrides import overridden_keys, prepare_argv, task_overrides
from metarun.config import paths
from metarun.config.groups import CONFIG_GROUPS
from metarun.config.schema import Settings
from metarun.engine.rank import rank_from_env
from metarun.errors import RunFailure, UserError
from metarun.utils import console, files, logs, run_dir_lock
from metarun.utils.files import as_run_failure
from metarun.utils.run_dir_lock import AUTO
from metarun.utils.text import printable

PATH_ERRNOS = {  # what is wrong with a path that a person gave
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
EXPECTED_ERRORS = (UserError, RunFailure, FloatingPointError)  # in one line, without a traceback
AUTO_NEEDS = "goes on with what is in a folder of its own, and a new one would be empty"
job_errors: list[Exception] = []  # of the jobs of this sweep; each has been told
created_run_dirs: list[Path] = []  # folders that are made for this command


def main() -> int:
    """Run the command that stands in sys.argv; its exit status."""
    console.prepare()
    try:
        status = command()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    status = console.status(status)
    processes = sys.modules.get("metarun.distributed.launch")
    if processes and processes.abandoned:  # one of torchrun's hangs: torch would wait for it
        sys.stderr.flush()
        os._exit(status)
    return status


def command() -> int:
    """The same, which may also raise SystemExit."""
    typed, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them over several lines
    job_errors.clear()
    created_run_dirs.clear()
    sweep_progress.sweep_configs.clear()
    try:
        if "--version" in typed:
            print(f"metarun {__version__}")
            return 0
        if (seat := rank_from_env()) and seat.rank:
            from metarun.distributed.task_parallel import worker_main

            worker_main()
        if seat:
            from metarun.distributed.launch import init_process_group

            init_process_group(seat)
        choices, arguments = prepare_argv(typed[1:])
        sweeps.CheckpointChoices().choices, sweeps.CheckpointChoices().process = choices, os.getpid()
        sys.argv = [typed[0], *choices, *arguments]
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)()
    except KeyboardInterrupt as stopped:
        print(f"metarun: {str(stopped) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(stopped, "number", signal.SIGINT)
    except Exception as error:
        if not sweeps.was_told(error):
            return report_error(error)
        job_errors[:] = job_errors or [error]
    finally:
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = typed, before
    try:
        sweep_progress.print_sweep_table()
    except (UserError, RunFailure, OSError) as error:
        job_errors.append(error)
        print_error(str(error))
    return exit_status(job_errors)


def report_error(error: Exception) -> int:
    """Tell what ended the command, where a job has not yet; the exit status. Raises what is no mistake."""
    if failure := as_run_failure(error):  # Hydra could not write down what was typed
        print_error(str(failure))
        return 1
    job_of_error = sweeps.job_prefix(error)
    if not isinstance(error, EXPECTED_ERRORS if job_of_error else USER_ERRORS):
        raise error
    print_error(job_of_error + user_message(error))
    remove_empty_sweep_dirs(created_run_dirs)
    return exit_status([error]) if job_of_error else 2


def job(config: DictConfig) -> float | None:
    """One run, as Hydra calls it. A failure ends the command, but in a sweep it is left to Hydra, which goes on."""
    try:
        sweeps.attend(HydraConfig.get())
        with logs.held() as let_log_go:
            return one_run(config, let_log_go)
    finally:
        if sweeps.left_alone:
            os._exit(128 + signal.SIGTERM)  # what this run came to, nobody takes any more


def one_run(config: DictConfig, let_log_go: Callable[[], None]) -> float | None:
    now = HydraConfig.get()
    typed = typed_now(now)
    sweeps.set_omp_threads(now)
    folder, sweeping = Path(now.runtime.output_dir), now.mode == RunMode.MULTIRUN

    def record() -> None:
        let_log_go()
        if config.resume in (None, AUTO):  # a resumed run keeps its first record
            write_record(folder / ".hydra", config)

    if now.job.chdir:
        os.chdir(now.runtime.cwd)  # where paths mean what they meant when they were typed
    try:
        named = list(overridden_keys(typed))
        chosen = paths.absolute(settings.merge_with_checkpoint(settings.build(config, named), named))
        sweeps.check_sweeper(now, chosen.dataset.name, chosen.mode)
        run_dir_lock.require_free(folder, chosen.mode, chosen.resume, sweeping)
        if chosen.resume == AUTO:
            settings.check_resume_settings(chosen, folder)
        if chosen.mode == "report":
            from metarun.report.write import report

            report(chosen.runs, folder, record)
            return None
        from metarun.runner import run

        return run(chosen, folder, record)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in PATH_ERRNOS:
            error = UserError(f"{error.filename}: {error.strerror}; give a folder that can be read and written")
        error = as_run_failure(error) or error
        if not isinstance(error, EXPECTED_ERRORS):
            traceback.print_exc()
        if sweeping:
            if not any(folder.iterdir()):
                record()
            job_errors.append(error)
            sweeps.tag_job_error(error, f"job {now.job.num} ({' '.join(typed)})")
            print_error(f"{sweeps.job_prefix(error)}{error}")
            raise error
        if isinstance(error, EXPECTED_ERRORS):
            print_error(str(error))
        remove_empty_sweep_dirs(created_run_dirs)
        sys.exit(exit_status([error]))


def typed_now(hydra: Any) -> list[str]:
    """What a person typed, without the choices that a checkpoint brought."""
    return [text for text in task_overrides(hydra) if text not in sweeps.CheckpointChoices().choices]


def exit_status(errors: Sequence[Exception]) -> int:
    return 0 if not errors else 2 if all(isinstance(error, UserError) for error in errors) else 1


def print_error(message: str) -> None:
    print("metarun: error:", printable(" ".join(message.split())), file=sys.stderr)


def config_folder() -> Path:
    """`configs/` within the installed package, or at the root of the clone that this file stands in."""
    package = Path(__file__).resolve().parents[1]
    clone = package.parent
    if not (package / "configs").is_dir() and (clone / "pyproject.toml").is_file():
        return clone / "configs"
    return package / "configs"


# --- within Hydra: what its configuration refers to --------------------------------------------------------


def validate_before_run_dir(*, _root_: DictConfig) -> str:
    """Refuses the settings of a run, and a sweeper's, before a folder is made for it, whoever chose the folder."""
    if {"--help", "-h"} & set(
        sys.argv
    ) or sweep_progress.sweep_configs:  # Hydra looks here after each job of a sweep too
        return ""
    node = "sweep" if _root_.hydra.mode == RunMode.MULTIRUN else "run"
    if node == "sweep":
        sweeps.check_sweep(_root_)
    else:
        settings.build(_root_, list(overridden_keys(typed_now(_root_.hydra))))
    typed = dict(_root_.hydra[node].items_ex(resolve=False))["dir"]
    if "${metarun." in str(typed):
        return ""  # a new folder, or that of resume=RUN
    folder = Path(str(_root_.hydra[node].dir)).absolute()
    if node == "sweep":
        run_dir_lock.require_free_sweep(folder, _root_.resume)
    else:
        run_dir_lock.require_free(folder, _root_.mode, _root_.resume)
    if not folder.exists():
        created_run_dirs.append(folder)
    return ""


def run_folder(resume: str | None) -> str:
    """The folder to resume in, or a new one."""
    if resume == AUTO:
        raise UserError(f"resume=auto: {AUTO_NEEDS}, give hydra.run.dir=FOLDER")
    return create_run_dir(Path("outputs")) if resume is None else str(paths.resume_dir(resume))


def sweep_folder(resume: str | None) -> str:
    if resume == AUTO:
        raise UserError(f"resume=auto: {AUTO_NEEDS}, give hydra.sweep.dir=FOLDER")
    return create_run_dir(Path("outputs/multirun"))


def create_run_dir(parent: Path) -> str:
    """Make parent/<date>/<time>, or with -2, -3, ... behind it where another run of this second has been first."""
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


def remove_empty_sweep_dirs(folders: Iterable[Path]) -> None:
    """Take away those that were made for a command that was refused, and what is then empty above them."""
    for folder in folders:
        if folder.is_dir() and [path.name for path in folder.iterdir()] in ([], [run_dir_lock.SWEEP]):
            (folder / run_dir_lock.SWEEP).unlink(missing_ok=True)
            for empty in (folder, *folder.parents[:3]):
                if empty == Path() or any(empty.iterdir()):
                    break
                empty.rmdir()


def write_record(place: Path, config: DictConfig) -> None:
    """What was typed, and the config that it came to, in the files that Hydra would write before the run begins."""
    place.mkdir(exist_ok=True)
    of_hydra = HydraConfig.instance().cfg
    nodes = {"config": config, "hydra": of_hydra, "overrides": HydraConfig.get().overrides.task}
    for name, node in nodes.items():
        files.atomic_write(place / f"{name}.yaml", OmegaConf.to_yaml(node))


def help_text(*, _root_: DictConfig) -> str:
    """The help, for Hydra's string template."""
    loader = GlobalHydra.instance().config_loader()
    choices = {group: loader.get_group_options(group) for group in CONFIG_GROUP_NAMES}
    chosen = HydraConfig.get().runtime.choices
    return help.render_help(choices, chosen, lambda name: OmegaConf.select(_root_, name)).replace("$", "$$")


def register() -> None:
    """Tell Hydra the schema, and OmegaConf what `${metarun.*}` in config.yaml means."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Settings)
    for group, nodes in CONFIG_GROUPS.items():
        for name, node in nodes.items():  # under schema/, so that they are not choices by themselves
            store.store(group=f"schema/{group}", name=name, node=node)
    OmegaConf.register_new_resolver("metarun.checked", validate_before_run_dir, replace=True)
    OmegaConf.register_new_resolver("metarun.run_folder", run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("metarun.sweep_folder", sweep_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("metarun.help", help_text, replace=True)


register()  # at import, since a sweep's job may run in another process that only imports `job`
