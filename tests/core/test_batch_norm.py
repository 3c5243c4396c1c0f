"""Whose statistics batch norm takes (`batch_norm`): laws of the gradient, of the labels, and what runs keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from metarun.checkpointing import store
from metarun.cli.settings import merge_with_checkpoint
from metarun.config.groups import Conv4, Folder
from metarun.config.methods import Maml
from metarun.config.schema import Engine, EvalConfig, Save, Settings
from metarun.core import batch_norm_stats, meta_learner
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.core.forward import functional_forward, query_weights
from metarun.core.meta_learner import evaluate_tasks, unbind_tasks
from metarun.errors import UserError
from metarun.methods import METHODS
from metarun.nn.norm import BatchNormPolicy, per_step
from metarun.runner import run
from tests.helpers.laws import (
    CASES,
    NETWORKS,
    Problem,
    finite_differences,
    largest_relative_error,
    largest_tensor_error,
    learning,
    problem,
    shake,
)
from tests.helpers.problems import NORMS, Normed, regression_tasks

both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])


def ruled(rule: str, name: str = "maml", steps: int = 2, tasks: int = 2) -> Problem:
    """The method on two convolutions under a rule of batch norm; the affine of each step is another one."""
    if rule != "per_step":
        one = problem(name, "convolutions", steps, tasks=tasks)
        return one._replace(learner=replace(one.learner, norm=BatchNormPolicy(rule)))
    torch.manual_seed(1)
    network, shape = NETWORKS["convolutions"]
    model, drawn = network(), regression_tasks(tasks, shape, each=4)
    norm = per_step(model, steps)
    method = CASES[name].make(model, 0.125)
    shake(method.parameters.phi)
    one = learning(model, method, drawn, steps, CASES[name].order)
    return one._replace(learner=replace(one.learner, norm=norm))


COMBINED = [("support", name) for name in ("maml", "fomaml", "mtnet", "warpgrad", "l2f", "boil")]
COMBINED += [("per_step", name) for name in ("maml", "fomaml", "mtnet", "msgd", "l2f", "anil")]


@pytest.mark.parametrize(("rule", "name"), COMBINED)
def test_the_meta_gradient_is_exact(rule: str, name: str) -> None:
    one = ruled(rule, name)
    expected = finite_differences(one.learner, one.parameters, one.tasks, one.noise, CASES[name].objective)
    looped, vectorised = one.judged(False), one.judged(True)
    assert largest_tensor_error(looped[0], expected) < 1e-8
    assert largest_tensor_error(vectorised, looped) < 1e-10
    for how in (False, True):
        mixed = meta_learner.meta_gradient(
            one.learner, one.parameters, one.tasks, one.noise, how, CheckpointedTaskLearner
        )
        assert largest_tensor_error(mixed, looped) < 1e-10


def test_support_statistics_by_hand() -> None:
    """One norm: the query's features less the support features' mean, over their deviation."""
    torch.manual_seed(1)
    model, tasks = Normed(NORMS["metarun batch"]()), regression_tasks(1, (2, 5, 5), outputs=3)
    one = learning(model, METHODS["maml"](model, 0.1), tasks, steps=0)
    learner = replace(one.learner, norm=BatchNormPolicy("support"))
    loss, _ = evaluate_tasks(learner, one.parameters, tasks, one.noise, vectorised=True)
    support, query = model.convolution(tasks.support_data[0]), model.convolution(tasks.query_data[0])
    mean, var = support.mean((0, 2, 3), keepdim=True), support.var((0, 2, 3), correction=0, keepdim=True)
    scale, shift = (part[:, None, None] for part in model.norm.parameters())
    normal = (query - mean) / (var + 1e-5).sqrt() * scale + shift
    expected = (model.head(normal.tanh().mean((2, 3))) - tasks.query_target[0]).square().mean()
    torch.testing.assert_close(loss[0, 0], expected.detach(), rtol=1e-12, atol=0)


def test_equal_affines_of_all_steps_are_one() -> None:
    """In training, where a query set has its own statistics; the one affine's gradient is the sum of theirs."""
    one, plain = ruled("per_step", steps=3), ruled("transductive", steps=3)
    with torch.no_grad():
        for name, tensor in one.parameters.phi.items():
            tensor.copy_(plain.parameters.phi[name].expand_as(tensor))
    found, expected = one.gradient(), plain.gradient()
    assert largest_relative_error(found.theta, expected.theta) < 1e-12
    assert largest_relative_error({name: rows.sum(0) for name, rows in found.phi.items()}, expected.phi) < 1e-12
    assert all(rows.abs().amax(1).min() > 1e-9 for rows in found.phi.values())  # each step's is used


# --- whose label depends on whom ---------------------------------------------------------------------------


def logits(one: Problem, data: Tensor, taken: int) -> Tensor:
    task, (theta, phi) = next(unbind_tasks(one.tasks)), one.parameters
    return functional_forward(
        one.learner, query_weights(one.learner, theta, phi, task.support_data, taken), data
    ).detach()


def found_statistics(one: Problem, vectorised: bool = False) -> Problem:
    sums = batch_norm_stats.accumulate_statistics(one.learner, one.parameters, one.tasks, one.noise, vectorised)
    mean = {name: each / len(one.noise) for name, each in sums.items()}
    return one._replace(learner=replace(one.learner, norm=replace(one.learner.norm, statistics=mean)))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["support", "per_step"])
def test_a_label_does_not_depend_on_which_queries_come_along(rule: str) -> None:
    one = ruled(rule, tasks=3)
    one = found_statistics(one) if rule == "per_step" else one
    images = one.tasks.query_data[0]
    for taken in (0, 1, 2, 7):
        alone = torch.cat([logits(one, image[None], taken) for image in images])
        torch.testing.assert_close(logits(one, images, taken), alone, rtol=1e-12, atol=1e-12)
    transductive = ruled("transductive")
    alone = torch.cat([logits(transductive, image[None], 2) for image in images])
    assert (logits(transductive, images, 2) - alone).abs().max() > 1e-3


@both_ways
def test_the_statistics_of_one_task_are_its_own(vectorised: bool) -> None:
    """After each inner step: then running statistics and the query set's own judge alike."""
    one = ruled("per_step", tasks=1)
    own = evaluate_tasks(one.learner, one.parameters, one.tasks, one.noise, vectorised)[0]
    one = found_statistics(one, vectorised)
    found = evaluate_tasks(one.learner, one.parameters, one.tasks, one.noise, vectorised)[0]
    assert largest_relative_error(found, own) < 1e-12
    norm = one.learner.norm
    assert norm.statistics is not None and {len(each) for each in norm.statistics.values()} == {3}
    for name, last in norm.after(2).items():
        assert torch.equal(norm.after(9)[name], last) and not torch.equal(norm.after(1)[name], last)


def test_statistics_are_the_same_vectorised_and_looped() -> None:
    looped, vectorised = (found_statistics(ruled("per_step", tasks=3), how) for how in (False, True))
    assert largest_relative_error(vectorised.learner.norm.statistics, looped.learner.norm.statistics) < 1e-12


# --- runs --------------------------------------------------------------------------------------------------

SIZE = 16


def pictures(folder: Path, classes: int = 12, each: int = 6) -> None:
    """Random dots of a density that is the class's."""
    for number in range(classes):
        (folder / f"c{number:02}").mkdir(parents=True)
        for i in range(each):
            dots = np.random.default_rng((number, i)).random((SIZE, SIZE)) < (number + 1) / (classes + 2)
            Image.fromarray((255 * dots).astype(np.uint8)).save(folder / f"c{number:02}" / f"{i}.png")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """Of a run of a second on pictures."""
    place = tmp_path_factory.mktemp("pictures")
    pictures(place / "all")
    return partial(
        Settings,
        dataset=Folder(root=str(place / "all"), size=SIZE, grey=True),
        backbone=Conv4(filters=4, bias=False, downsample="stride"),  # a bias, which batch norm undoes, would drift
        method=Maml(),
        batch_norm="per_step",
        ways=2,
        queries=2,
        inner_loop=2,
        inner_learning_rate=0.1,
        meta_batch=4,
        iterations=6,
        cache_dir=str(place / "cache"),
        eval=EvalConfig(tasks=4, validation_tasks=4, every=3, inner_loop=3),
        save=Save(every=2, keep=3),
    )


def judged(folder: Path) -> dict[str, object]:
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in ("seconds", "checkpoint")}


@pytest.mark.slow
def test_running_statistics_are_kept_resumed_and_shared(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarun.distributed.task_parallel.RUNNING_TASKS", 6)
    run(settings(), tmp_path / "run")
    assert judged(tmp_path / "run")["batch_norm"] == "per_step"
    best = store.load(store.best_checkpoint_path(tmp_path / "run")).statistics
    assert best.keys() == {f"blocks.{i}.norm.running_{kind}" for i in range(4) for kind in ("mean", "var")}
    assert all(tensor.shape == (3, 4) and tensor.abs().max() > 0 for tensor in best.values())
    assert not store.load(store.step_checkpoint_path(tmp_path / "run", 4)).statistics  # no validation there

    for step in (6, 4):  # with the statistics of its last validation, and without any
        for path in store.list_step_checkpoints(tmp_path / "run"):
            if int(path.stem[5:]) > step or (step == 4 and path != store.step_checkpoint_path(tmp_path / "run", 4)):
                path.unlink()
        (tmp_path / "run" / "result.json").rename(tmp_path / "before.json")
        run(settings(resume=str(tmp_path / "run")), tmp_path / "run")
        before = json.loads((tmp_path / "before.json").read_text())
        assert judged(tmp_path / "run") == {key: before[key] for key in judged(tmp_path / "run")}
    for path in (store.best_checkpoint_path(tmp_path / "run"), tmp_path / "run"):
        run(settings(mode="evaluate", checkpoint=str(path)), tmp_path / "again")
        assert judged(tmp_path / "again")["by_step"] == judged(tmp_path / "run")["by_step"]

    run(settings(engine=Engine(workers=2)), tmp_path / "two")
    shared = store.load(store.best_checkpoint_path(tmp_path / "two")).statistics
    torch.testing.assert_close(shared, best, rtol=5e-3, atol=5e-4)
    assert judged(tmp_path / "two")["by_step"] == pytest.approx(judged(tmp_path / "run")["by_step"])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["support", "per_step"])
def test_a_lone_picture_is_labelled_as_in_company(
    settings: Callable[..., Settings], tmp_path: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarun.distributed.task_parallel.RUNNING_TASKS", 6)
    run(settings(batch_norm=rule), tmp_path / "run")
    pictures(tmp_path / "known", classes=2, each=2)
    new = [str(path) for path in sorted((tmp_path / "known").rglob("*.png"))]
    predicting = partial(
        settings, batch_norm=rule, mode="predict", support=str(tmp_path / "known"), adapted_weights=True
    )
    rows = {}
    for name, query in {"together": new, "alone": new[-1]}.items():
        run(predicting(checkpoint=str(tmp_path / "run"), query=query), tmp_path / name)
        rows[name] = (tmp_path / name / "predictions.csv").read_text().splitlines()[-1].split(",")
    assert [float(value) for value in rows["alone"][2:4]] == pytest.approx(
        [float(value) for value in rows["together"][2:4]], abs=1e-5
    )
    kept = load_file(tmp_path / "alone" / "adapted.safetensors")
    assert kept["blocks.0.norm.running_mean"].shape == kept["blocks.0.norm.weight"].shape == (4,)


@pytest.mark.slow
def test_a_checkpoint_without_statistics_cannot_label(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarun.distributed.task_parallel.RUNNING_TASKS", 6)
    run(settings(iterations=3), tmp_path / "run")
    pictures(tmp_path / "known", classes=2, each=1)
    path, places = store.step_checkpoint_path(tmp_path / "run", 2), {"support": str(tmp_path / "known")}
    with pytest.raises(UserError, match=r"step-00000002.safetensors: was written between two .*best.safetensors"):
        run(settings(mode="predict", checkpoint=str(path), query=places["support"], **places), tmp_path / "made")
    run(settings(mode="evaluate", checkpoint=str(path)), tmp_path / "judged")  # which finds them by itself
    assert len(judged(tmp_path / "judged")["by_step"]) == 4  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_transductive_run_can_be_judged_by_the_supports_statistics(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    run(settings(batch_norm="transductive"), tmp_path / "run")
    now = settings(batch_norm="support", mode="evaluate", checkpoint=str(tmp_path / "run"))
    run(merge_with_checkpoint(now, ["mode", "checkpoint", "batch_norm"]), tmp_path / "judged")
    one, other = judged(tmp_path / "run"), judged(tmp_path / "judged")
    assert other["batch_norm"] == "support" and other["by_step"] != one["by_step"]
    now.batch_norm = "per_step"
    with pytest.raises(UserError, match=r"batch_norm=per_step differs from the run's transductive, .*leave it out"):
        merge_with_checkpoint(now, ["mode", "checkpoint", "batch_norm"])
