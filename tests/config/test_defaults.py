"""Every method with every data set by default: as many inner steps in evaluation as its update was trained for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import tests
from metarun.cli import settings
from metarun.config.groups import CONFIG_GROUPS, choice_name, choices
from metarun.config.schema import Settings, flatten
from metarun.engine.eval_result import EvalResult
from metarun.utils.run_outputs import read_result
from tests.helpers.command_line import command

CONFIGS = Path(tests.__file__).parents[1] / "configs"
ANY_STEP = {"maml", "fomaml", "l2f", "anil", "boil"}  # whose update is the trained one at any step
PAIRS = [
    (m, d) for m in CONFIG_GROUPS["method"] for d in CONFIG_GROUPS["dataset"] if (m, d) != ("pretrain", "sinusoid")
]


@cache
def chosen(*typed: str) -> Settings:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return settings.build(compose("config", list(typed)), [text.partition("=")[0] for text in typed])


def needed(dataset: str) -> list[str]:
    return [f"dataset.root={CONFIGS}"] if dataset == "folder" else []


@pytest.mark.parametrize(("method", "dataset"), PAIRS)
def test_defaults_evaluate_no_step_that_was_not_trained(method: str, dataset: str) -> None:
    found = chosen(f"method={method}", f"dataset={dataset}", *needed(dataset))
    longer = dataset == "sinusoid" and method in ANY_STEP
    assert found.eval.inner_loop == (10 if longer else None)


@pytest.mark.parametrize("rates", ["element", "tensor", "tensor_step", "scalar"])
@pytest.mark.parametrize("method", sorted(set(CONFIG_GROUPS["method"]) - {"msgd", "pretrain"}))
def test_learned_rates_are_of_the_trained_steps(method: str, rates: str) -> None:
    assert chosen(f"method={method}", "dataset=sinusoid", f"learn_lr={rates}").eval.inner_loop is None


CHOICES = [(group, choice) for group in CONFIG_GROUPS for choice in choices(group)]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_choice_is_said_as_it_was_made(group: str, choice: str) -> None:
    typed = [f"{group}={choice}", *(needed(choice) if group == "dataset" else [])]
    if choice == "pretrain":
        typed.append("dataset=glyphs")
    found = chosen(*typed)
    assert choice_name(getattr(found, group)) == flatten(found)[group] == choice


def test_what_is_typed_is_done() -> None:
    assert chosen("method=msgd", "dataset=sinusoid", "eval.inner_loop=7").eval.inner_loop == 7
    assert chosen("method=maml", "dataset=sinusoid", "inner_loop=3").eval.inner_loop is None
    assert chosen("experiment=mtnet_omniglot_5way_1shot").eval.inner_loop == 10


# --- steps that diverge ------------------------------------------------------------------------------------

NAN = float("nan")


def of(*by_step: float, trained: int = 1) -> EvalResult:
    values = torch.tensor([by_step, by_step], dtype=torch.float64)
    return EvalResult("mse", values, values, trained)


def test_a_finite_result_is_that_of_the_last_step() -> None:
    found = of(4, 1, 2)
    assert (found.result_step, found.mean, found.nonfinite_message, found.finite_steps) == (2, 2, None, 3)
    assert found.summary()["inner_step"] == 2


def test_behind_a_step_that_is_not_finite_the_trained_one_is_told_and_the_last_finite_one() -> None:
    found = of(4, 1, 9, NAN, NAN)
    assert (found.result_step, found.mean, found.loss, found.ci95) == (1, 1, 1, 0)
    assert found.nonfinite_message == (
        "the mse is not finite after 4 inner steps: the result is that of step 1, the last one of training; step 2 is "
        "the last finite one, with 9.0000 ± 0.0000"
    )
    assert str(of(4, 1, 2e30, NAN).nonfinite_message).endswith("step 2 is the last finite one, with 2e+30 ± 0")
    assert found.summary()["inner_step"] == 1 and str(found) == "mse 1.0000 ± 0.0000"
    assert [value == value for value in found.by_step] == [True, True, True, False, False]
    assert of(4, 1, float("inf")).result_step == 1 and of(4, 1, NAN, 3).result_step == 3


def test_where_the_trained_step_is_not_finite_an_earlier_one_is_told() -> None:
    found = of(4, 2, NAN, NAN, trained=3)
    assert (found.result_step, found.mean) == (1, 2) and "step 1, the last finite one" in str(found.nonfinite_message)
    none = of(NAN, NAN)
    assert none.finite_steps == 0 and none.nonfinite_message is None and none.mean != none.mean


def test_an_accuracy_of_outputs_that_are_not_finite_is_none() -> None:
    values = torch.tensor([[0.2, 0.7, 0.2], [0.2, 0.5, 0.2]], dtype=torch.float64)
    losses = torch.tensor([[1.6, 0.8, NAN], [1.6, 0.9, NAN]], dtype=torch.float64)
    found = EvalResult("accuracy", values, losses, 1)
    assert (found.result_step, found.mean) == (1, pytest.approx(0.6)) and found.by_step[2] != found.by_step[2]
    losses[0, 2] = 3.0  # one task's alone: the others' answers are counted as they are
    assert EvalResult("accuracy", values, losses, 1).result_step == 2


@pytest.mark.usefixtures("alone")
def test_a_run_whose_later_steps_diverge_ends_with_a_finite_result(capfd: pytest.CaptureFixture[str]) -> None:
    small = ["eval.tasks=20", "eval.validation_tasks=20", "eval.every=10", "iterations=10", "backbone.hidden=[8]"]
    diverging = ["inner_learning_rate=0.5", "eval.inner_loop=300"]
    assert command("dataset=sinusoid", "method=msgd", *small, *diverging, "hydra.run.dir=run") == 0
    found = read_result(Path("run"))
    assert found["inner_step"] == 1 and found["mean"] == found["by_step"][1] and found["loss"] == found["mean"]
    assert len(found["by_step"]) == 301 and found["by_step"][-1] is None
    said = Path("run/metarun.log").read_text()
    assert "the mse is not finite after 300 inner steps: the result is that of step 1, the last one of training" in said
    tasks = Path("run/tasks.csv").read_text()
    assert len(tasks.splitlines()) == 21 and "nan" not in tasks
