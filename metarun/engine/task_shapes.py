"""Ways, shots, queries and inner steps of a run's training and evaluation tasks, and the outputs that they need."""

from dataclasses import replace

from metarun.config.schema import Settings
from metarun.data import TaskSampler, TaskShape


def eval_ways(settings: Settings) -> int:
    """Classes of an evaluation task: `eval.ways`, or `ways` if it is not set."""
    return settings.eval.ways or settings.ways


def train_shape(settings: Settings) -> TaskShape:
    return TaskShape(settings.ways, settings.shots, settings.queries)


def eval_shape(settings: Settings) -> TaskShape:
    s = settings
    return TaskShape(eval_ways(s), s.eval.shots or s.shots, s.eval.queries or s.queries)


def eval_inner_loop(settings: Settings) -> int:
    """Inner steps in an evaluation; 0 for pretraining, which is evaluated by nearest centroids."""
    if not settings.method.episodic:
        return 0
    return settings.inner_loop if settings.eval.inner_loop is None else settings.eval.inner_loop


def with_max_ways(settings: Settings) -> Settings:
    """The settings with `ways` raised to `eval.ways`: the network then has outputs for both."""
    return replace(settings, ways=max(settings.ways, eval_ways(settings)))


def head_description(settings: Settings) -> str:
    """Which head an evaluation uses, in the words of result.json."""
    if eval_ways(settings) == settings.ways:
        return "as trained"
    return "widened" if eval_ways(settings) > settings.ways else "its first outputs"


def check_task_shapes(settings: Settings, source: TaskSampler) -> None:
    """Raises UserError if a split that the run draws tasks from has too few classes, or too few examples in one."""
    shape = eval_shape(settings)
    keys = [f"eval.{name}" if getattr(settings.eval, name) else name for name in ("ways", "shots", "queries")]
    if settings.mode == "evaluate":
        source.check(settings.eval.split, shape, keys)
        return
    source.check("train", train_shape(settings))
    for split in ("val", "test"):
        source.check(split, shape, keys)
