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

from metarun import __version__, help, places, settings, sweep_progress, sweeps, whole_files
from metarun.errors import RunFailure, UserError
from metarun.groups import GROUPS
from metarun.mistakes import CHOICES, MISTAKES, explain
from metarun.schema import AUTO, Settings
from metarun.seat import given_seat
from metarun.typed import arrange, names, typed_in
from metarun.utils import console, logs, run_dir
from metarun.utils.text import printable
from metarun.whole_files import plain

UNUSABLE = {  # what is wrong with a path that a person gave
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
TOLD = (UserError, RunFailure, FloatingPointError)  # in one line, without a traceback
AUTO_NEEDS = "goes on with what is in a folder of its own, and a new one would be empty"
failures: list[Exception] = []  # of the jobs of this sweep; each has been told
claimed: list[Path] = []  # folders that are made for this command


def main() -> int:
    """Run the command that stands in sys.argv; its exit status."""
    console.prepare()
    try:
        status = command()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    status = console.status(status)
    processes = sys.modules.get("metarun.processes")
    if processes and processes.abandoned:  # one of torchrun's hangs: torch would wait for it
        sys.stderr.flush()
        os._exit(status)
    return status


def command() -> int:
    """The same, which may also raise SystemExit."""
    typed, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them over several lines
    failures.clear()
    claimed.clear()
    sweep_progress.swept.clear()
    try:
        if "--version" in typed:
            print(f"metarun {__version__}")
            return 0
        if (seat := given_seat()) and seat.rank:
            from metarun.team import follow

            follow()
        if seat:
            from metarun.processes import join

            join(seat)
        choices, arguments = arrange(typed[1:])
        sweeps.Brought().choices, sweeps.Brought().process = choices, os.getpid()
        sys.argv = [typed[0], *choices, *arguments]
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)()
    except KeyboardInterrupt as stopped:
        print(f"metarun: {str(stopped) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(stopped, "number", signal.SIGINT)
    except Exception as error:
        if not sweeps.was_told(error):
            return refuse(error)
        failures[:] = failures or [error]
    finally:
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = typed, before
    try:
        sweep_progress.tell_table()
    except (UserError, RunFailure, OSError) as error:
        failures.append(error)
        tell(str(error))
    return worst(failures)


def refuse(error: Exception) -> int:
    """Tell what ended the command, where a job has not yet; the exit status. Raises what is no mistake."""
    if failure := plain(error):  # Hydra could not write down what was typed
        tell(str(failure))
        return 1
    job_of_error = sweeps.of_job(error)
    if not isinstance(error, TOLD if job_of_error else MISTAKES):
        raise error
    tell(job_of_error + explain(error))
    give_up(claimed)
    return worst([error]) if job_of_error else 2


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
    sweeps.take_share(now)
    folder, sweeping = Path(now.runtime.output_dir), now.mode == RunMode.MULTIRUN

    def record() -> None:
        let_log_go()
        if config.resume in (None, AUTO):  # a resumed run keeps its first record
            write_record(folder / ".hydra", config)

    if now.job.chdir:
        os.chdir(now.runtime.cwd)  # where paths mean what they meant when they were typed
    try:
        named = list(names(typed))
        chosen = places.absolute(settings.meet(settings.build(config, named), named))
        sweeps.check_sweeper(now, chosen.dataset.name, chosen.mode)
        run_dir.require_free(folder, chosen.mode, chosen.resume, sweeping)
        if chosen.resume == AUTO:
            settings.require_same(chosen, folder)
        if chosen.mode == "report":
            from metarun.report.write import report

            report(chosen.runs, folder, record)
            return None
        from metarun.runner import run

        return run(chosen, folder, record)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNUSABLE:
            error = UserError(f"{error.filename}: {error.strerror}; give a folder that can be read and written")
        error = plain(error) or error
        if not isinstance(error, TOLD):
            traceback.print_exc()
        if sweeping:
            if not any(folder.iterdir()):
                record()
            failures.append(error)
            sweeps.leave_word(error, f"job {now.job.num} ({' '.join(typed)})")
            tell(f"{sweeps.of_job(error)}{error}")
            raise error
        if isinstance(error, TOLD):
            tell(str(error))
        give_up(claimed)
        sys.exit(worst([error]))


def typed_now(hydra: Any) -> list[str]:
    """What a person typed, without the choices that a checkpoint brought."""
    return [text for text in typed_in(hydra) if text not in sweeps.Brought().choices]


def worst(errors: Sequence[Exception]) -> int:
    return 0 if not errors else 2 if all(isinstance(error, UserError) for error in errors) else 1


def tell(message: str) -> None:
    print("metarun: error:", printable(" ".join(message.split())), file=sys.stderr)


def config_folder() -> Path:
    """`configs/` within the installed package, or at the root of the clone that this file stands in."""
    package = Path(__file__).resolve().parent
    clone = package.parent
    if not (package / "configs").is_dir() and (clone / "pyproject.toml").is_file():
        return clone / "configs"
    return package / "configs"


# --- within Hydra: what its configuration refers to --------------------------------------------------------


def checked(*, _root_: DictConfig) -> str:
    """Refuses the settings of a run, and a sweeper's, before a folder is made for it, whoever chose the folder."""
    if {"--help", "-h"} & set(sys.argv) or sweep_progress.swept:  # Hydra looks here after each job of a sweep too
        return ""
    node = "sweep" if _root_.hydra.mode == RunMode.MULTIRUN else "run"
    if node == "sweep":
        sweeps.check_sweep(_root_)
    else:
        settings.build(_root_, list(names(typed_now(_root_.hydra))))
    typed = dict(_root_.hydra[node].items_ex(resolve=False))["dir"]
    if "${metarun." in str(typed):
        return ""  # a new folder, or that of resume=RUN
    folder = Path(str(_root_.hydra[node].dir)).absolute()
    if node == "sweep":
        run_dir.require_free_sweep(folder, _root_.resume)
    else:
        run_dir.require_free(folder, _root_.mode, _root_.resume)
    if not folder.exists():
        claimed.append(folder)
    return ""


def run_folder(resume: str | None) -> str:
    """The folder to resume in, or a new one."""
    if resume == AUTO:
        raise UserError(f"resume=auto: {AUTO_NEEDS}, give hydra.run.dir=FOLDER")
    return claim(Path("outputs")) if resume is None else str(places.resumed(resume))


def sweep_folder(resume: str | None) -> str:
    if resume == AUTO:
        raise UserError(f"resume=auto: {AUTO_NEEDS}, give hydra.sweep.dir=FOLDER")
    return claim(Path("outputs/multirun"))


def claim(parent: Path) -> str:
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
            claimed.append(folder)
            return str(folder)
        except FileExistsError:
            number += 1


def give_up(folders: Iterable[Path]) -> None:
    """Take away those that were made for a command that was refused, and what is then empty above them."""
    for folder in folders:
        if folder.is_dir() and [path.name for path in folder.iterdir()] in ([], [run_dir.SWEEP]):
            (folder / run_dir.SWEEP).unlink(missing_ok=True)
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
        whole_files.write(place / f"{name}.yaml", OmegaConf.to_yaml(node))


def help_text(*, _root_: DictConfig) -> str:
    """The help, for Hydra's string template."""
    loader = GlobalHydra.instance().config_loader()
    choices = {group: loader.get_group_options(group) for group in CHOICES}
    chosen = HydraConfig.get().runtime.choices
    return help.text(choices, chosen, lambda name: OmegaConf.select(_root_, name)).replace("$", "$$")


def register() -> None:
    """Tell Hydra the schema, and OmegaConf what `${metarun.*}` in config.yaml means."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Settings)
    for group, nodes in GROUPS.items():
        for name, node in nodes.items():  # under schema/, so that they are not choices by themselves
            store.store(group=f"schema/{group}", name=name, node=node)
    OmegaConf.register_new_resolver("metarun.checked", checked, replace=True)
    OmegaConf.register_new_resolver("metarun.run_folder", run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("metarun.sweep_folder", sweep_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("metarun.help", help_text, replace=True)


register()  # at import, since a sweep's job may run in another process that only imports `job`
