"""The final test: evaluates a checkpoint and the untrained weights on the tasks of `eval.split`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metarun.checkpointing import ensemble, store
from metarun.checkpointing.state import CheckpointState, Weights
from metarun.data.image_sampler import ImageTaskSampler
from metarun.distributed import execution_info
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine.context import RunContext
from metarun.errors import UserError, relative_to_cwd
from metarun.evaluation import summaries
from metarun.evaluation.confusion import ConfusionStats
from metarun.evaluation.paired import TASKS_CSV, write_tasks
from metarun.evaluation.results import build_result, run_description, task_name
from metarun.loggers import open_loggers
from metarun.loggers.base import hparam_dict
from metarun.utils.signals import defer_signals
from metarun.utils.text import pluralize

log = logging.getLogger(__name__)


@contextmanager
def test_progress(tasks: int, hint: Callable[[], str]) -> Iterator[Callable[[int], None]]:
    """A progress bar over `tasks` tasks, each tested with trained and with untrained weights.

    Yields a function to be called with the number of tasks done after each chunk. It raises RunInterrupted after a
    SIGINT or SIGTERM, with a message that ends in `hint()`.
    """
    with defer_signals() as stop, tqdm(total=2 * tasks, desc="testing", unit="task", disable=None) as bar:

        def progress(done: int) -> None:
            bar.update(done)
            stop.raise_if_asked(f"in the final test{hint()}")

        yield progress


def run_final_test(
    team: TaskParallelGroup, folder: Path, path: Path, untrained: Weights | None, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Evaluate the checkpoint at `path` on the tasks of `eval.split`, and write its tables and plots into `folder`.

    Args:
        untrained: the initial weights, evaluated on the same tasks as a baseline; None: not known.
        progress: called with the number of tasks done; twice `eval.tasks` in all, if `untrained` is given.

    Returns:
        The content of result.json, see `build_result`.

    Raises:
        UserError: mode=evaluate asks for a larger ensemble than the run kept.
        FloatingPointError: the metric is not finite even before the first inner step, or a probability is not finite.
    """
    state = store.load(path)
    work = team.work
    options = work.settings.eval
    split = options.split
    members = ensemble_members(work, path.parent.parent) if options.ensemble > 1 else []
    details = None
    if options.details and isinstance(work.source, ImageTaskSampler):
        details = ConfusionStats(work.source, split, work.eval_shape)
    work.load_state_dict(work.match_head(state.weights), str(path))
    consumers = [details.add] if details else []
    tested = team.evaluate(split, options.tasks, progress, *consumers, members=[member.weights for member in members])
    if not tested.finite_steps:
        raise FloatingPointError(
            f"{relative_to_cwd(path)}: the {tested.metric} of {split} tasks is not finite before the first inner step; "
            "evaluate another checkpoint of the run"
        )
    if tested.nonfinite_message:
        log.warning("%s; choose the steps with eval.inner_loop=N", tested.nonfinite_message)
    baseline = None
    if untrained is not None:
        work.load_state_dict(untrained, "untrained")
        baseline = team.evaluate(split, options.tasks, progress)
    write_tasks(folder / TASKS_CSV, tested.metric, tested.values[:, tested.result_step].tolist())
    result = build_result(work, state, path, tested, baseline)
    result |= {"ensemble": len(members) or 1, "engine": execution_info.execution_summary(team)}
    with open_loggers(folder) as loggers:
        summaries.test_summaries(tested, baseline, state.best).log(loggers, state.step)
        for logger in loggers:
            logger.log_hparams(hparam_dict(work.settings), finished=True)
            logger.flush()
    if details:
        details.write(folder)
        result |= details.summary()
    log.info("%s by inner step: %s", tested.metric, "  ".join(f"{value:.4f}" for value in tested.by_step))
    what = run_description(work, task_name(work, work.eval_shape))
    what += f", an ensemble of the best {pluralize(len(members), 'checkpoint')}" if members else ""
    which, baseline_text = "test" if split == "test" else "validation", baseline or "not known"
    log.info("%s: %s %s on %s (untrained: %s)", what, which, tested, pluralize(options.tasks, "task"), baseline_text)
    return result


def ensemble_members(work: RunContext, run_dir: Path) -> list[CheckpointState]:
    """The best `eval.ensemble` checkpoints that the run keeps, with a warning if they are fewer.

    Raises:
        UserError: they are fewer, and mode=evaluate asks for them.
    """
    size = work.settings.eval.ensemble
    members = ensemble.load_ensemble_members(run_dir, size, work.source.metric)
    if len(members) < size:
        kept = pluralize(len(members), "checkpoint")
        message = f"eval.ensemble={size}: {relative_to_cwd(run_dir)} keeps {kept} for it"
        if work.settings.mode == "evaluate":
            raise UserError(f"{message}; give eval.ensemble={len(members)}")
        log.warning("%s, the ensemble that is tested", message)
    return members
