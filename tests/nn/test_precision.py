"""engine.precision: which tensors become bfloat16, that it leads where float32 leads, and what a device refuses."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from metarun.backbones import BACKBONES
from metarun.checkpointing import store
from metarun.cli.settings import check_resume_settings
from metarun.config.schema import Engine
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.core.forward import functional_forward
from metarun.core.meta_learner import MetaLearner, TaskLearner, TaskLearnerFactory, evaluate_tasks, meta_gradient
from metarun.core.objectives import classification
from metarun.errors import UserError
from metarun.methods import METHODS, Parameters
from metarun.nn.precision import set_precision
from metarun.runner import run
from metarun.types import Task
from tests.helpers.small_runs import small

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BFLOAT16 = Engine(precision="bfloat16")
both_ways = pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])


@pytest.fixture(autouse=True)
def float32_again() -> Iterator[None]:
    yield
    set_precision("float32", CPU)


class Problem(NamedTuple):
    learner: MetaLearner
    tasks: Task
    noise: Tensor

    def judged(self, precision: str, vectorised: bool, kind: TaskLearnerFactory = TaskLearner) -> tuple[Tensor, Tensor]:
        """The meta-gradient, flattened, and the losses."""
        learner = replace(self.learner, precision=precision)
        found, losses, _ = meta_gradient(learner, learner.method.parameters, self.tasks, self.noise, vectorised, kind)
        return flat(found), losses


def flat(gradient: Parameters) -> Tensor:
    return torch.cat([entry.flatten() for part in gradient for entry in part.values()])


def problem(network: str, method: str = "maml", steps: int = 1, rate: float = 0.01, **options: Any) -> Problem:
    """Two tasks of five noisy patterns."""
    torch.manual_seed(0)
    model = BACKBONES[network]((1, 16, 16), 5, **({"filters": 8} if network == "conv4" else {}), **options)
    learner = MetaLearner(model, METHODS[method](model, rate), classification, classification, steps)
    patterns = nn.functional.interpolate(torch.randn(10, 1, 4, 4), size=(16, 16)).view(2, 5, 1, 16, 16)
    labels = torch.arange(5).expand(2, 5)
    tasks = Task(patterns, labels, patterns + 0.1 * torch.rand_like(patterns), labels)
    return Problem(learner, tasks, torch.rand(2, learner.method.noise(steps)))


@both_ways
@pytest.mark.parametrize("network", ["mlp", "conv4"])
def test_bfloat16_leads_where_float32_leads(network: str, vectorised: bool) -> None:
    """Through batch norm, rounding of any kind turns the gradient of a few tasks: docs/performance.md has figures."""
    one = problem("conv4", norm="none") if network == "conv4" else problem("mlp")
    (plain, losses), (found, own) = (one.judged(precision, vectorised) for precision in ("float32", "bfloat16"))
    assert torch.cosine_similarity(found, plain, 0) > 0.99
    torch.testing.assert_close(own, losses, rtol=0.02, atol=0)
    assert found.dtype == own.dtype == torch.float32 and not torch.equal(found, plain)


@both_ways
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"pretrain"}))  # which adapts to no task
def test_every_method_computes_in_it(method: str, vectorised: bool) -> None:
    one = problem("mlp", method, hidden=[16])
    (plain, _), (found, losses) = (one.judged(precision, vectorised) for precision in ("float32", "bfloat16"))
    mixed, _ = one.judged("bfloat16", vectorised, CheckpointedTaskLearner)
    assert found.isfinite().all() and losses.isfinite().all() and found.dtype == torch.float32
    assert torch.cosine_similarity(found, plain, 0) > 0.98 and not torch.equal(found, plain)
    assert torch.cosine_similarity(mixed, found, 0) > 0.999
    learner = replace(one.learner, precision="bfloat16")
    judged = evaluate_tasks(learner, learner.method.parameters, one.tasks, one.noise, vectorised)[0]
    assert judged.shape == (2, 2)
    assert judged.isfinite().all() and judged.dtype == torch.float32


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_layers_are_bfloat16_and_norms_and_outputs_are_not(downsample: str) -> None:
    one = problem("conv4", downsample=downsample)
    seen: dict[str, set[torch.dtype]] = {}

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen.setdefault(type(module).__name__, set()).add(output.dtype)

    for module in one.learner.model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) or type(module).__name__ == "Norm":
            module.register_forward_hook(note)
    theta, phi = one.learner.method.parameters
    output = functional_forward(replace(one.learner, precision="bfloat16"), {**theta, **phi}, one.tasks.query_data[0])
    assert seen == {"Conv2d": {torch.bfloat16}, "Norm": {torch.float32}, "Linear": {torch.bfloat16}}
    assert output.dtype == torch.float32


@pytest.mark.parametrize("images", [5, 30])  # of which many are normalised and pooled by operations of our own
def test_float32_is_the_network_itself_to_the_last_bit(images: int) -> None:
    one = problem("conv4")
    data = torch.rand(images, 1, 16, 16)
    theta, phi = one.learner.method.parameters
    assert torch.equal(functional_forward(one.learner, {**theta, **phi}, data), one.learner.model(data))
    other = functional_forward(replace(one.learner, precision="bfloat16"), {**theta, **phi}, data)
    torch.testing.assert_close(other, one.learner.model(data), rtol=0.1, atol=0.1)


def test_what_a_run_keeps_is_float32_and_a_resume_in_another_precision_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(small(tmp_path, iterations=20, engine=BFLOAT16), tmp_path / "run")
    path = store.latest_intact_checkpoint(tmp_path / "run")
    state = store.load(path)
    kept = [*state.theta.values(), *state.exp_avg.values(), *state.exp_avg_sq.values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert "tasks vectorised, in bfloat16" in caplog.text and "mlp, bfloat16: test mse" in caplog.text
    run(small(tmp_path, iterations=40, resume="x", engine=BFLOAT16), tmp_path / "run")
    assert "not exactly" not in caplog.text
    run(small(tmp_path, iterations=60, resume="x"), tmp_path / "run")
    assert "(they differ by more than rounding): precision was bfloat16, is float32" in caplog.text


def test_resume_auto_goes_on_in_the_same_precision_only(tmp_path: Path) -> None:
    run(small(tmp_path, iterations=20, engine=BFLOAT16), tmp_path / "run")
    check_resume_settings(small(tmp_path, iterations=20, engine=replace(BFLOAT16, tasks="looped")), tmp_path / "run")
    with pytest.raises(UserError, match=r"has engine\.precision=bfloat16, not float32"):
        check_resume_settings(small(tmp_path, iterations=20), tmp_path / "run")


def test_tf32_is_set_on_a_gpu_that_has_it_and_cleared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    set_precision("tf32", GPU)
    assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "tf32")
    for precision in ("float32", "bfloat16"):
        set_precision("tf32", GPU)
        set_precision(precision, GPU)
        assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")


def test_a_device_without_the_precision_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine.precision=tf32: is of GPUs, and the device is cpu; give"):
        set_precision("tf32", CPU)
    with pytest.raises(UserError, match=r"engine.precision=tf32: is of GPUs"):
        run(small(tmp_path, device="cpu", engine=Engine(precision="tf32")), tmp_path / "run")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(UserError, match=rf"engine.precision={precision}: needs a GPU of .* 8.0 \(Ampere\) or more"):
            set_precision(precision, GPU)
    set_precision("float32", GPU)
