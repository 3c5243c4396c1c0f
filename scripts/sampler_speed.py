"""How fast tasks are drawn, and the share of a training step spent waiting for them.

python -m scripts.sampler_speed [GROUP=CHOICE ...] [KEY=VALUE ...]      the same words as metarun takes
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir

from metarun.cli import app, settings
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine.context import build_context
from metarun.training.trainer import Trainer

STEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the same words as metarun takes")
    overrides = parser.parse_args().overrides
    with initialize_config_dir(str(app.config_folder()), version_base="1.3"):
        work = build_context(settings.build(compose("config", overrides)))
    shape, batch = work.train_shape, work.settings.meta_batch
    drawing: list[float] = []
    draw = work.source.draw

    def timed_draw(*arguments: object) -> object:
        began = time.perf_counter()
        tasks = draw(*arguments)  # type: ignore[arg-type]
        drawing.append(time.perf_counter() - began)
        return tasks

    work.source.draw = timed_draw  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        training = Trainer(TaskParallelGroup(work), Path(folder))
        steps = []
        for _ in range(STEPS):
            began = time.perf_counter()
            training.outer_step()
            steps.append(time.perf_counter() - began)
    drawn, step = statistics.median(drawing), statistics.median(steps)
    inputs = batch * (shape.shots + shape.queries) * (shape.ways if work.source.metric == "accuracy" else 1)
    print(f"{work.settings.dataset.name}: meta-batches of {batch} tasks, {inputs} inputs, median of {STEPS} steps")
    print(f"  drawing   {1e3 * drawn:8.3f} ms   {batch / drawn:10,.0f} tasks/s   {inputs / drawn:12,.0f} inputs/s")
    print(f"  a step    {1e3 * step:8.3f} ms   waiting for data {drawn / step:.2%} of it")


if __name__ == "__main__":
    main()
