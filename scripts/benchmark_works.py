"""What the benchmark measures, and the file that says to every contender what to compute."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from metarun.data.task_sampler import SPLITS
from metarun.engine.context import build_context
from metarun.engine.eval_result import EVALUATION_SEED
from scripts.benchmark_contender import SIDES
from scripts.method_cost import composed

BATCHES = {
    "mlp": 50,
    "conv4": 4,
    "resnet12": 2,
}  # meta-batches that the peers go through again and again


@dataclass(frozen=True)
class Work:
    """Something to compute, as the words that metarun takes for it."""

    name: str
    title: str
    words: tuple[str, ...]
    kind: str = "train"  # an outer step; or "evaluate" or "draw" a meta-batch of tasks
    pictures: int = 0  # pixels of made-up pictures, high and wide, where they are drawn from

    @property
    def convolutional(self) -> bool:
        return any(word.startswith(("backbone=conv4", "backbone=resnet12")) for word in self.words)

    @property
    def jax(self) -> bool:
        """Whether its network is written down for JAX."""
        return "backbone=resnet12" not in self.words


SINE = ("dataset=sinusoid", "shots=10", "queries=10", "meta_batch=25", "inner_learning_rate=0.01")
GLYPHS = ("dataset=glyphs", "backbone=conv4", "shots=1", "queries=5", "eval.queries=5", "meta_batch=4", "inner_loop=5")
SMALL = (*GLYPHS, "inner_learning_rate=0.01", "outer_schedule=constant")
FOLDER = ("dataset=folder", "backbone=conv4_narrow", "shots=1", "queries=15", "eval.queries=15", "meta_batch=2")
LARGE = (*FOLDER, "inner_loop=5", "inner_learning_rate=0.01", "outer_schedule=constant")
DEEP = ("dataset=folder", "backbone=resnet12", "shots=1", "queries=5", "eval.queries=5", "meta_batch=2", "inner_loop=5")
RESNET = (*DEEP, "inner_learning_rate=0.01", "outer_schedule=constant")
FIRST = "use_second_order=false"
SMALL_TITLE = "Conv4-64, 28x28x1, 5-way 1-shot, 5 queries a class, 4 tasks, 5 steps"
LARGE_TITLE = "Conv4-32, 84x84x3, 5-way 1-shot, 15 queries a class, 2 tasks, 5 steps"
DEEP_TITLE = "ResNet-12, 32x32x3, 5-way 1-shot, 5 queries a class, 2 tasks, 5 steps"

WORKS = (
    Work("sine1", "sinusoid, MLP 40-40, 25 tasks, 10 shots, 10 queries, 1 step", (*SINE, "inner_loop=1")),
    Work("sine5", "sinusoid, MLP 40-40, 25 tasks, 10 shots, 10 queries, 5 steps", (*SINE, "inner_loop=5")),
    Work("conv28", SMALL_TITLE, SMALL),
    Work("conv84", LARGE_TITLE, LARGE, pictures=84),
    Work("resnet12", DEEP_TITLE, RESNET, pictures=32),
    Work("conv28-first-order", f"{SMALL_TITLE}, first order", (*SMALL, FIRST)),
    Work("conv84-first-order", f"{LARGE_TITLE}, first order", (*LARGE, FIRST), pictures=84),
    Work("conv28-evaluate", f"evaluation: {SMALL_TITLE}", SMALL, "evaluate"),
    Work("draw-sine", "sampler: 25 curves of 20 points", (*SINE, "inner_loop=1"), "draw"),
    Work("draw-glyphs", "sampler: 4 tasks of 30 glyphs", SMALL, "draw"),
)


def prepare(work: Work, folder: Path) -> tuple[Path, list[str]]:
    """Write what the peers need into `folder`; the file, and metarun's words, whose `cache_dir` is there too."""
    words = [*work.words, f"cache_dir={folder / 'cache'}"]
    if work.pictures:
        root = folder / f"pictures{work.pictures}"
        words += [f"dataset.root={root}", f"dataset.size={work.pictures}"]
        if not root.exists():
            write_pictures(root, work.pictures)
    path = folder / f"{work.name}.npz"
    write_problem(work, [*words, "device=cpu"], path)
    return path, words


def write_pictures(root: Path, size: int, classes: int = 5, each: int = 16) -> None:
    rng = np.random.default_rng(0)
    for place in [root / split / f"{split}{number}" for split in SPLITS for number in range(classes)]:
        place.mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")


def write_problem(work: Work, words: Sequence[str], path: Path) -> None:
    made = build_context(composed(words))
    settings = made.settings
    evaluating = work.kind == "evaluate"
    seed, split, shape = (
        (EVALUATION_SEED, "test", made.eval_shape) if evaluating else (settings.seed, "train", made.train_shape)
    )
    backbone = dataclasses.asdict(settings.backbone)
    spec = {
        "kind": work.kind,
        "backbone": backbone,
        "input_shape": made.source.input_shape,
        "outputs": made.source.num_outputs(settings.ways),
        "inner_loop": settings.inner_loop,
        "inner_learning_rate": settings.inner_learning_rate,
        "outer_learning_rate": settings.outer_learning_rate,
        "second_order": settings.use_second_order,
        "adapted": list(made.parameters.theta),
    }
    count = settings.meta_batch
    batches = [
        made.source.draw(seed, split, number * count, count, shape) for number in range(BATCHES[backbone["name"]])
    ]
    sides = {side: np.stack([getattr(batch, side).numpy() for batch in batches]) for side in SIDES}
    values = {f"parameter/{name}": tensor.detach().numpy() for part in made.parameters for name, tensor in part.items()}
    np.savez(path, spec=json.dumps(spec), **sides, **values)  # type: ignore[arg-type]
