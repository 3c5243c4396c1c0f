"""The best checkpoints tested together (`eval.ensemble`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metarun.checkpointing import ensemble, store
from metarun.config.schema import Engine, EvalConfig, Save, Settings
from metarun.core.objectives import classification
from metarun.engine.context import build_context
from metarun.engine.eval_result import EVALUATION_SEED
from metarun.errors import UserError
from metarun.runner import run
from tests.helpers.command_line import command
from tests.helpers.small_runs import small


def settings(place: Path, **changes: object) -> Settings:
    """Six validations; the outer rate is large, so that they differ."""
    three = EvalConfig(tasks=10, validation_tasks=10, every=5, inner_loop=3, shots=4, queries=7, ensemble=3)
    given = {"iterations": 30, "outer_learning_rate": 0.02, "eval": three, "save": Save(every=10, keep=1), **changes}
    return small(place, **given)


def result(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in found.items() if key not in ("seconds", "checkpoint")}


def validations(folder: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["mse"] for entry in entries if entry["split"] == "val"}


def kept(folder: Path) -> list[int]:
    return [int(path.stem[4:]) for path in ensemble.member_paths(folder)]


def test_the_best_are_kept_and_the_mean_of_their_outputs_is_judged(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    run(settings(tmp_path), tmp_path / "run")
    found = validations(tmp_path / "run")
    best = sorted(found, key=lambda step: found[step])[:3]
    assert kept(tmp_path / "run") == sorted(best) and result(tmp_path / "run")["ensemble"] == 3
    assert "an ensemble of the best 3 checkpoints: test mse" in caplog.text

    work = build_context(settings(tmp_path))
    said = []
    for step in best:
        work.load_state_dict(store.load(ensemble.member_path(tmp_path / "run", step)).weights, "member")
        said.append(work.query_logits("test", 0, 10))  # [tasks, steps + 1, points, 1]
    targets = work.source.draw(EVALUATION_SEED, "test", 0, 10, work.eval_shape).query_target[:, None]
    errors = (torch.stack(said).mean(0) - targets).square().mean((2, 3))
    assert result(tmp_path / "run")["by_step"] == pytest.approx(errors.mean(0).tolist(), rel=1e-5)
    one = F.mse_loss(said[0], targets.expand_as(said[0]))
    assert float(one) != pytest.approx(float(errors.mean()), rel=1e-4)


def test_logits_are_averaged() -> None:
    """Not probabilities: of two networks the surer one decides."""
    logits = torch.tensor([[[9.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]]]).mean(0)[
        None, None
    ]  # [tasks, steps, queries, ways]
    _, accuracy = ensemble.score_logits(classification, "accuracy", logits, torch.tensor([[0]]))
    assert accuracy.tolist() == [[1.0]]


@pytest.mark.slow
def test_it_is_the_same_after_a_stop_and_among_processes(tmp_path: Path) -> None:
    run(settings(tmp_path), tmp_path / "whole")
    folder = tmp_path / "stopped"
    run(settings(tmp_path, iterations=20), folder)
    run(settings(tmp_path, resume=str(folder)), folder)
    assert result(folder) == result(tmp_path / "whole") and kept(folder) == kept(tmp_path / "whole")
    run(settings(tmp_path, engine=Engine(workers=2)), tmp_path / "two")
    assert result(tmp_path / "two")["by_step"] == pytest.approx(result(folder)["by_step"], rel=1e-3)


def test_a_lost_member_is_told(tmp_path: Path, caplog) -> None:
    run(settings(tmp_path, iterations=20), tmp_path / "run")
    ensemble.member_paths(tmp_path / "run")[0].unlink()
    ensemble.member_paths(tmp_path / "run")[0].write_bytes(b"")
    run(settings(tmp_path, iterations=20, resume=str(tmp_path / "run")), tmp_path / "run")
    assert "is missing; the ensemble goes without it" in caplog.text and "cut short" in caplog.text
    assert result(tmp_path / "run")["ensemble"] == 1 and "keeps 1 checkpoint for it" in caplog.text


def test_fewer_are_evaluated_and_no_more_than_are_kept(tmp_path: Path) -> None:
    run(settings(tmp_path), tmp_path / "run")
    now = settings(tmp_path, mode="evaluate", checkpoint=str(tmp_path / "run"))
    run(now, tmp_path / "same")
    assert result(tmp_path / "same")["by_step"] == result(tmp_path / "run")["by_step"]
    run(replace(now, eval=replace(now.eval, ensemble=2)), tmp_path / "fewer")
    assert result(tmp_path / "fewer")["ensemble"] == 2
    assert result(tmp_path / "fewer")["mean"] != result(tmp_path / "run")["mean"]
    with pytest.raises(UserError, match=r"eval.ensemble=4: .*run keeps 3 checkpoints for it; give eval.ensemble=3"):
        run(replace(now, eval=replace(now.eval, ensemble=4)), tmp_path / "more")


def test_a_file_and_a_resumed_run_have_their_own_number(alone: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset=sinusoid", "backbone.hidden=[8]", "iterations=20", "eval.every=10", "eval.tasks=4"]
    assert command(*words, "eval.validation_tasks=4", "eval.ensemble=2", "hydra.run.dir=run") == 0
    best = "checkpoint=run/checkpoints/best.safetensors"
    assert command("mode=evaluate", best, "hydra.run.dir=one") == 0
    assert result(Path("one"))["ensemble"] == 1
    for typed, told in {
        f"mode=evaluate {best} eval.ensemble=2": "is one network",
        "resume=run eval.ensemble=1": "eval.ensemble=1 differs from the run's 2",
    }.items():
        capsys.readouterr()
        assert command(*typed.split()) == 2
        assert told in capsys.readouterr().err
