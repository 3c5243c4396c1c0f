"""Entry point of the `metarun` command: parses the command line with Hydra and passes `Settings` to the runner.

Torch is imported only when a run begins, so that `--help` and error messages are fast.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun import __version__
from metarun.cli import help, resolvers, settings, sweeps
from metarun.cli.errors import USER_ERRORS, user_message
from metarun.cli.overrides import overridden_keys, prepare_argv
from metarun.config import paths
from metarun.engine.rank import rank_from_env
from metarun.errors import RunFailure, UserError
from metarun.utils import console, files, logs, run_dir_lock
from metarun.utils.files import as_run_failure
from metarun.utils.run_dir_lock import AUTO
from metarun.utils.text import printable

PATH_ERRNOS = {  # errors that a path given by the user can cause
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
EXPECTED_ERRORS = (UserError, RunFailure, FloatingPointError)  # printed on one line, without a traceback
job_errors: list[Exception] = []  # errors of the jobs of this sweep, already printed


def main() -> int:
    """Run the command in `sys.argv` and return its exit status."""
    console.prepare()
    try:
        status = run_command()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    status = console.status(status)
    processes = sys.modules.get("metarun.distributed.launch")
    if processes and processes.abandoned:  # a process of torchrun hangs, and torch would wait for it at exit
        sys.stderr.flush()
        os._exit(status)
    return status


def run_command() -> int:
    """Run the command in `sys.argv` and return its exit status. May raise SystemExit, as Hydra does."""
    argv, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them over several lines
    job_errors.clear()
    resolvers.created_run_dirs.clear()
    sweeps.sweep_configs.clear()
    try:
        if "--version" in argv:
            print(f"metarun {__version__}")
            return 0
        if (rank := rank_from_env()) and rank.rank:
            from metarun.distributed.group import worker_main

            worker_main()
        if rank:
            from metarun.distributed.launch import init_process_group

            init_process_group(rank)
        choices, arguments = prepare_argv(argv[1:])
        sweeps.CheckpointChoices().choices, sweeps.CheckpointChoices().process = choices, os.getpid()
        if {"--help", "-h"} & set(arguments):
            print(help.help_text(config_folder(), choices, arguments))
            return 0
        sys.argv = [argv[0], *choices, *arguments]
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(job)()
    except KeyboardInterrupt as stopped:
        print(f"metarun: {str(stopped) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(stopped, "number", signal.SIGINT)
    except Exception as error:
        if not sweeps.was_printed(error):
            return report_error(error)
        job_errors[:] = job_errors or [error]
    finally:
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, before
    try:
        sweeps.print_sweep_table()
    except (UserError, RunFailure, OSError) as error:
        job_errors.append(error)
        print_error(str(error))
    return exit_status(job_errors)


def report_error(error: Exception) -> int:
    """Print the error that ended the command and return the exit status. Reraises errors that are not the user's."""
    if failure := as_run_failure(error):  # Hydra could not write its record of the command
        print_error(str(failure))
        return 1
    job_of_error = sweeps.job_prefix(error)
    if not isinstance(error, EXPECTED_ERRORS if job_of_error else USER_ERRORS):
        raise error
    print_error(job_of_error + user_message(error))
    resolvers.remove_empty_sweep_dirs()
    return exit_status([error]) if job_of_error else 2


def job(config: DictConfig) -> float | None:
    """Hydra's task function: one run. Returns the best validation metric of a training run, for sweepers.

    An error ends the command; within a sweep it is raised to Hydra, whose launcher goes on with the other jobs.
    """
    try:
        sweeps.prepare_job_process(HydraConfig.get())
        with logs.delayed_log_files() as open_log:
            return run_job(config, open_log)
    finally:
        if sweeps.orphaned:
            os._exit(128 + signal.SIGTERM)  # the launcher that would take the result has ended


def run_job(config: DictConfig, open_log: Callable[[], None]) -> float | None:
    """Check the settings and run them.

    Args:
        config: the composed config.
        open_log: opens the log file, once all checks have passed.
    """
    hydra_config = HydraConfig.get()
    overrides = resolvers.user_overrides(hydra_config)
    sweeps.set_omp_threads(hydra_config)
    folder, sweeping = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN

    def record() -> None:
        open_log()
        if config.resume in (None, AUTO):  # a resumed run keeps its first record
            write_record(folder / ".hydra", config)

    if hydra_config.job.chdir:
        os.chdir(hydra_config.runtime.cwd)  # relative paths on the command line refer to this folder
    try:
        keys = list(overridden_keys(overrides))
        chosen = paths.absolute(settings.merge_with_checkpoint(settings.build(config, keys), keys))
        sweeps.check_sweeper(hydra_config, chosen.dataset.name, chosen.mode)
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
            sweeps.tag_job_error(error, f"job {hydra_config.job.num} ({' '.join(overrides)})")
            print_error(f"{sweeps.job_prefix(error)}{error}")
            raise error
        if isinstance(error, EXPECTED_ERRORS):
            print_error(str(error))
        resolvers.remove_empty_sweep_dirs()
        sys.exit(exit_status([error]))


def exit_status(errors: Sequence[Exception]) -> int:
    """0 without errors, 2 if all are mistakes of the user, 1 otherwise."""
    return 0 if not errors else 2 if all(isinstance(error, UserError) for error in errors) else 1


def print_error(message: str) -> None:
    """Print `metarun: error: MESSAGE` to standard error, on one line."""
    print("metarun: error:", printable(" ".join(message.split())), file=sys.stderr)


def config_folder() -> Path:
    """The `configs/` folder: in the installed package, or at the root of the clone that contains this file."""
    package = Path(__file__).resolve().parents[1]
    clone = package.parent
    if not (package / "configs").is_dir() and (clone / "pyproject.toml").is_file():
        return clone / "configs"
    return package / "configs"


def write_record(folder: Path, config: DictConfig) -> None:
    """Write config.yaml, hydra.yaml and overrides.yaml to `folder`, as Hydra does if `hydra.output_subdir` is set."""
    folder.mkdir(exist_ok=True)
    nodes = {"config": config, "hydra": HydraConfig.instance().cfg, "overrides": HydraConfig.get().overrides.task}
    for name, node in nodes.items():
        files.atomic_write(folder / f"{name}.yaml", OmegaConf.to_yaml(node))


resolvers.register()  # at import, since a launcher's process only imports `job`
