"""Pretraining runs, and meta-learning runs that begin with what they left."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from metarun.checkpointing import store
from metarun.config.groups import Conv4, Folder, Mlp
from metarun.config.methods import Anil, Maml, Mtnet, Pretrain
from metarun.config.schema import Engine, EvalConfig, Save, Settings
from metarun.core.meta_learner import meta_gradient
from metarun.data.minibatches import minibatches
from metarun.engine.context import build_context
from metarun.runner import run
from metarun.training import trainer
from metarun.utils.run_outputs import read_result
from metarun.utils.signals import RunInterrupted
from tests.helpers.laws import largest_relative_error
from tests.helpers.small_runs import lines, tensors

CLASSES = 25


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A pretraining run of a second, on 25 classes of a white pixel each."""
    for number in range(CLASSES):
        (tmp_path / f"pictures/class {number}").mkdir(parents=True)
        for brightness in range(6):
            picture = Image.new("L", (8, 8), 10 * brightness)
            picture.putpixel((number % 8, number // 8), 255)
            picture.save(tmp_path / f"pictures/class {number}/{brightness}.png")
    return Settings(
        dataset=Folder(root=str(tmp_path / "pictures"), size=8),
        backbone=Mlp(hidden=[20]),
        method=Pretrain(batch=5),
        ways=3,
        queries=2,
        meta_batch=2,
        iterations=30,
        outer_learning_rate=0.01,
        data_dir=str(tmp_path / "data"),
        cache_dir=str(tmp_path / "cache"),
        eval=EvalConfig(tasks=20, validation_tasks=10, every=10),
        save=Save(every=10, keep=2),
        engine=Engine(workers=1),
    )


@pytest.mark.parametrize("backbone", [Mlp(hidden=[6]), Conv4(filters=3, downsample="stride")])
def test_its_gradient_is_that_of_an_ordinary_classifier(settings: Settings, backbone: object) -> None:
    """Of the mean over mini-batches, each normalised by itself; looped and vectorised."""
    work = build_context(replace(settings, backbone=backbone))
    assert work.source.num_training_classes < CLASSES  # type: ignore[attr-defined]
    images, labels = minibatches(work.source, 0, 4, 2, 5)  # type: ignore[arg-type]
    model = work.learner.model
    loss = torch.stack([F.cross_entropy(model(x), y) for x, y in zip(images, labels, strict=True)]).mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    gradient, losses, measures = work.meta_gradient(4, 2, second_order=True)
    found = {**gradient.theta, **gradient.phi}
    assert largest_relative_error([found[name] for name, _ in model.named_parameters()], list(expected)) < 1e-5
    assert float(losses.mean()) == pytest.approx(float(loss.detach()), rel=1e-6) and measures["accuracy"].shape == (2,)
    tasks, noise = work.tasks(4, 2)
    vectorised = meta_gradient(work.learner, work.parameters, tasks, noise, vectorised=True)[0]
    assert largest_relative_error(vectorised, gradient) < 1e-5


def test_a_run_learns_and_is_judged_without_an_inner_loop(settings: Settings, tmp_path: Path) -> None:
    run(replace(settings, iterations=200, eval=replace(settings.eval, every=100)), tmp_path / "run")
    result = read_result(tmp_path / "run")
    assert result["inner_loop"] == 0 and len(result["by_step"]) == 1 and result["start"] is None
    train = [line for line in lines(tmp_path / "run") if line["split"] == "train"]
    assert train[-1]["loss"] < 0.7 * train[0]["loss"] and train[-1]["accuracy"] > train[0]["accuracy"]


@pytest.mark.parametrize("at", [10, 17])
def test_a_stopped_run_resumes_as_if_nothing_had_happened(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    run(settings, tmp_path / "whole")
    outer_step = trainer.Trainer.outer_step

    def interrupted(self: trainer.Trainer) -> dict[str, float]:
        if self.step + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return outer_step(self)

    with monkeypatch.context() as patch, pytest.raises(RunInterrupted):
        patch.setattr(trainer.Trainer, "outer_step", interrupted)
        run(settings, tmp_path / "parts")
    run(replace(settings, resume="x"), tmp_path / "parts")
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    torch.testing.assert_close(tensors(tmp_path / "parts"), tensors(tmp_path / "whole"), rtol=0, atol=0)


# --- beginning with it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Maml(), Anil(), Mtnet()])
def test_a_run_begins_with_its_body_and_a_head_of_its_own(settings: Settings, tmp_path: Path, method: object) -> None:
    run(settings, tmp_path / "pretrained")
    begun = replace(settings, method=method, start=str(tmp_path / "pretrained"), iterations=10, inner_loop=1)
    run(begun, tmp_path / "begun")
    start = store.load(tmp_path / "begun/checkpoints/start.safetensors")
    learned = store.load(store.best_checkpoint_path(tmp_path / "pretrained"))
    fresh = build_context(replace(begun, start=None)).state_dict()
    for kind, name in (
        ("phi" if isinstance(method, Anil) else "theta", f"layers.0.{part}") for part in ("weight", "bias")
    ):
        begun_with, drawn = getattr(start, kind)[name], getattr(fresh, kind)[name]
        assert torch.equal(begun_with, learned.theta[name]) and not torch.equal(begun_with, drawn)
    assert torch.equal(start.theta["layers.1.weight"], fresh.theta["layers.1.weight"])
    assert read_result(tmp_path / "begun")["start"] == begun.start
    assert store.load(tmp_path / "begun").settings.start == begun.start


def test_a_begun_run_needs_its_start_no_more(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed and evaluated it tells the same of the untrained network, and of a lone checkpoint that it cannot."""
    run(settings, tmp_path / "pretrained")
    begun = replace(settings, method=Maml(), start=str(tmp_path / "pretrained"), inner_loop=1)
    run(begun, tmp_path / "whole")
    run(replace(begun, iterations=20), tmp_path / "parts")
    (tmp_path / "pretrained").rename(tmp_path / "gone")
    run(replace(begun, resume="x"), tmp_path / "parts")
    torch.testing.assert_close(tensors(tmp_path / "parts"), tensors(tmp_path / "whole"), rtol=0, atol=0)
    judged = replace(begun, mode="evaluate", checkpoint=str(tmp_path / "whole"))
    run(judged, tmp_path / "judged")
    results = [read_result(tmp_path / name) for name in ("whole", "parts", "judged")]
    assert results[0]["untrained"] == results[1]["untrained"] == results[2]["untrained"]
    assert results[0]["mean"] == results[2]["mean"]
    (tmp_path / "whole/checkpoints/start.safetensors").unlink()
    run(judged, tmp_path / "alone")
    assert read_result(tmp_path / "alone")["untrained"] is None and "start.safetensors is missing" in caplog.text
