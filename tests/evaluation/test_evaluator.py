"""mode=evaluate: lists in one call, other ways and data sets, what is left by several, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from metarun import runner
from metarun.checkpointing import store
from metarun.config.groups import CifarFs, Conv4, Folder
from metarun.config.methods import Maml, Mtnet
from metarun.config.schema import Engine, EvalConfig, Settings
from metarun.core.forward import functional_forward
from metarun.core.meta_learner import TaskLearner, autograd_gradient
from metarun.engine.context import build_context
from metarun.engine.eval_result import evaluation_tasks
from metarun.errors import UserError
from metarun.evaluation.paired import compare_runs, read_tasks
from metarun.nn import fused
from metarun.runner import run
from metarun.utils.run_outputs import read_result
from metarun.utils.signals import RunInterrupted
from tests.helpers import small_data
from tests.helpers.command_line import command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that evaluate a run of 2 steps on own pictures of 8x8."""
    folder = tmp_path_factory.mktemp("trained")
    small_data.pictures(folder / "pictures", [f"class {i}" for i in range(40)], each=5)
    small_data.cifar(folder / "cifar-100-python")
    settings = Settings(
        dataset=Folder(root=str(folder / "pictures"), size=8),
        backbone=Conv4(filters=4, downsample="stride"),
        method=Maml(),
        ways=3,
        queries=2,
        inner_loop=1,
        inner_learning_rate=0.4,
        meta_batch=2,
        iterations=2,
        device="cpu",
        data_dir=str(folder),
        cache_dir=str(folder / "cache"),
        eval=EvalConfig(tasks=6, validation_tasks=2, every=2),
    )
    run(settings, folder / "run")
    return replace(settings, mode="evaluate", checkpoint=str(folder / "run"))


def with_eval(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, eval=replace(settings.eval, **changes))


def evaluated(settings: Settings, folder: Path, **changes: Any) -> dict[str, Any]:
    run(with_eval(settings, **changes), folder)
    return read_result(folder)


def without(result: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("seconds", *names)}


def test_a_list_gives_what_each_gives_alone(trained: Settings, tmp_path: Path) -> None:
    lists = {"split": ["val", "test"], "ways": [2, 5], "inner_loop": [0, 2]}
    results = evaluated(trained, tmp_path / "all", **lists, details=True)["results"]
    assert [(r["split"], r["ways"], r["inner_loop"]) for r in results] == [
        (split, ways, steps) for split in lists["split"] for ways in (2, 5) for steps in (0, 2)
    ]
    assert {r["ways"]: r["head"] for r in results} == {2: "its first outputs", 5: "widened"}
    alone = evaluated(trained, tmp_path / "one", split="test", ways=5, inner_loop=2, details=True)
    assert without(alone) == without(results[-1])
    own = tmp_path / "all" / "folder-test-5-way-1-shot-2-steps"
    assert without(read_result(own)) == without(alone)
    for name in ("tasks.csv", "classes.csv", "confusion.csv"):
        assert (own / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    with (tmp_path / "all" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["ways"], float(row["mean"])) for row in rows] == [(str(r["ways"]), r["mean"]) for r in results]
    assert float(rows[-1]["untrained_mean"]) == alone["untrained"]["mean"]


def test_every_finished_run_leaves_the_metric_of_each_task(trained: Settings, tmp_path: Path) -> None:
    for folder, result in (
        (Path(str(trained.checkpoint)), read_result(Path(str(trained.checkpoint)))),
        (tmp_path, evaluated(trained, tmp_path, tasks=9)),
    ):
        metric, values = read_tasks(folder / "tasks.csv")
        assert metric == "accuracy" and len(values) == result["tasks"]
        assert sum(values) / len(values) == pytest.approx(result["mean"], abs=1e-12)
    assert compare_runs(Path(str(trained.checkpoint)), tmp_path).mean == 0  # of the tasks that both have
    other = evaluated(trained, tmp_path / "other", shots=2)
    with pytest.raises(UserError, match="tested on different tasks"):
        compare_runs(Path(str(trained.checkpoint)), tmp_path / "other")
    assert other["test_tasks"] == "folder pictures-seed0-24/8/8, 3-way 2-shot, 2 queries, test"


def test_fewer_ways_are_the_first_outputs(trained: Settings) -> None:
    """Inner loop and judgement, written out."""
    settings = with_eval(trained, ways=2, inner_loop=2, details=True)
    path = store.resolve_checkpoint(Path(str(trained.checkpoint)))
    work = build_context(settings, checkpoint=path)
    work.load_state_dict(work.match_head(store.load(path).weights), "run")
    judged = work.evaluate_chunk("test", 0, 2)
    assert judged.shape == (2, 2, 3 + 4)
    learner, theta = work.learner, work.parameters.theta
    tasks, own = evaluation_tasks(learner, work.source, "test", 1, 1, work.eval_shape)
    one = TaskLearner(learner, tasks, own[0], autograd_gradient)
    theta = one.initial_parameters(work.parameters)
    for _ in range(2):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
        logits = functional_forward(learner, {**leaves, **work.parameters.phi}, tasks.support_data[0])[:, :2]
        gradients = torch.autograd.grad(F.cross_entropy(logits, tasks.support_target[0]), list(leaves.values()))
        theta = {name: theta[name] - 0.4 * entry for name, entry in zip(theta, gradients, strict=True)}
    logits = functional_forward(learner, {**theta, **work.parameters.phi}, tasks.query_data[0])[:, :2].detach()
    expected = F.cross_entropy(logits, tasks.query_target[0])
    assert float(judged[0, 1, 2]) == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(judged[0, 1, 3:].float(), logits.softmax(1).amax(1), rtol=1e-4, atol=1e-5)
    assert judged[1, 1, 3:].tolist() == logits.argmax(1).tolist()


def test_ways_that_are_typed_are_those_of_the_evaluation(trained: Settings, alone: None) -> None:
    assert command("mode=evaluate", f"checkpoint={trained.checkpoint}", "ways=2", "hydra.run.dir=made") == 0
    result = read_result(Path("made"))
    assert (result["ways"], result["trained_ways"]) == (2, 3)


def test_answers_are_the_same_at_once_and_one_by_one(trained: Settings, tmp_path: Path) -> None:
    for tasks in ("vectorised", "looped"):
        evaluated(replace(trained, engine=Engine(tasks=tasks)), tmp_path / tasks, details=True, ways=5)
    for name in ("tasks.csv", "confusion.csv"):
        assert (tmp_path / "looped" / name).read_bytes() == (tmp_path / "vectorised" / name).read_bytes()


def test_more_ways_than_the_method_permits_are_refused_before_any_work(trained: Settings, tmp_path: Path) -> None:
    training = replace(trained, mode="train", checkpoint=None, method=Mtnet(full=True))
    run(training, tmp_path / "run")
    many = with_eval(replace(training, mode="evaluate", checkpoint=str(tmp_path / "run")), ways=[2, 5])
    many.method = Mtnet(full=True)
    with pytest.raises(UserError, match=r"eval.ways=5: 3 are the most for this checkpoint, method=mtnet"):
        run(many, tmp_path / "evaluated")
    assert not list((tmp_path / "evaluated").iterdir())


def test_another_data_set_is_brought_into_the_form_of_the_trained_one(trained: Settings, tmp_path: Path) -> None:
    results = evaluated(trained, tmp_path, dataset=["folder", "cifar_fs"], queries=1)["results"]
    assert [(r["dataset"], r["trained_on"]) for r in results] == [("folder", "folder"), ("cifar_fs", "folder")]
    assert results[1]["class_split"] == "cifar_fs-bertinetto-64/16/20"
    path = store.resolve_checkpoint(Path(str(trained.checkpoint)))
    other = replace(with_eval(trained, queries=1), dataset=CifarFs())
    assert build_context(other, checkpoint=path).source.input_shape == (3, 8, 8)
    assert evaluated(other, tmp_path / "typed")["by_step"] == results[1]["by_step"]


def test_what_is_missing_for_the_last_is_told_before_the_first(trained: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data_dir=.*cub not found"):
        evaluated(trained, tmp_path, dataset=["folder", "cub"])
    with pytest.raises(UserError, match=r"eval.ways=9: the test split .* has 8 classes"):
        evaluated(trained, tmp_path, ways=[3, 9])
    assert not list(tmp_path.iterdir())


def test_a_stopped_evaluation_keeps_what_it_has_found(
    trained: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test: Callable[..., Any] = runner.run_final_test
    done: list[Path] = []

    def stopping(team: Any, folder: Path, *rest: Any) -> Any:
        if done:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(folder)
        return test(team, folder, *rest)

    monkeypatch.setattr(runner, "run_final_test", stopping)
    with pytest.raises(
        RunInterrupted, match=r"SIGTERM: stopped in the final test, 1 finished ones are in .*results.csv"
    ):
        evaluated(trained, tmp_path, shots=[1, 2])
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2 and not (tmp_path / "result.json").exists()
    assert read_result(done[0])["shots"] == 1


def test_a_checkpoint_tells_what_computed_its_batch_norm(trained: Settings) -> None:
    how = store.load(store.resolve_checkpoint(Path(str(trained.checkpoint)))).execution
    assert how["tasks"] == "looped" and how["loops"] == fused.backend_name() != "torch"


@pytest.mark.slow
def test_several_processes_count_as_one(trained: Settings, tmp_path: Path) -> None:
    lists = {"dataset": ["folder", "cifar_fs"], "queries": 1, "details": True}
    one = evaluated(trained, tmp_path / "one", **lists)["results"]
    two = evaluated(replace(trained, engine=Engine(workers=2)), tmp_path / "two", **lists)["results"]
    for first, second in zip(one, two, strict=True):
        error = second.pop("calibration_error")
        assert error == pytest.approx(first["calibration_error"], abs=1e-5)  # other threads, other rounding
        assert json.dumps(without(first, "calibration_error", "loss", "settings", "engine")) == json.dumps(
            without(second, "loss", "settings", "engine")
        )
    name = "cifar_fs-test-3-way-1-shot-1-steps/confusion.csv"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_table_is_told(trained: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        evaluated(trained, tmp_path, shots=[1, 2])
    head, *rows = [line for line in caplog.messages if line.startswith(("dataset ", "folder "))]
    assert head.split() == ["dataset", "split", "ways", "shots", "inner_loop", "accuracy", "untrained"]
    assert [row.split()[:5] for row in rows] == [["folder", "test", "3", shots, "1"] for shots in "12"]
