"""Runs through the runner: what they leave, that they repeat, resume, stop, and refuse."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.checkpointing import file_format, store
from metarun.cli import app
from metarun.config.groups import Mlp
from metarun.config.schema import Engine, Settings
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine.context import build_context
from metarun.engine.eval_result import EvalResult
from metarun.errors import UserError
from metarun.runner import run
from metarun.training import trainer
from tests.helpers.small_runs import lines, small, tensors


def test_a_run_folder_explains_itself(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    validation = run(small(tmp_path), folder)
    result = json.loads((folder / "result.json").read_text())
    assert result["dataset"] == "sinusoid" and result["method"] == "maml" and result["backbone"] == "mlp"
    assert result["metric"] == "mse" and result["shots"] == 4 and result["inner_loop"] == 3 and result["tasks"] == 10
    assert len(result["by_step"]) == 4 and result["mean"] == result["by_step"][-1] and result["ci95"] > 0
    assert result["untrained"]["mean"] > 0 and result["batch_norm"] == "none" and result["seed"] == 0
    assert result["validation"]["mean"] == validation
    written = lines(folder)
    assert [line["step"] for line in written if line["split"] == "train"] == [20, 40, 60]
    assert [line["step"] for line in written if line["split"] == "val"] == [30, 60]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["mse"]) for line in written)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.safetensors", "step-00000040.safetensors", "step-00000060.safetensors"]
    assert any((folder / "tensorboard").iterdir())


def test_what_the_engine_chose_is_kept_with_its_reason(tmp_path: Path) -> None:
    run(small(tmp_path, iterations=20, engine=Engine(tasks="looped", precision="bfloat16")), tmp_path / "run")
    chosen = json.loads((tmp_path / "run" / "result.json").read_text())["engine"]
    assert chosen.pop("threads") >= 1
    assert chosen == {"tasks": "looped", "reason": "as asked for", "processes": 1, "precision": "bfloat16"}
    assert store.load(store.latest_intact_checkpoint(tmp_path / "run")).execution_reason == "as asked for"
    run(small(tmp_path, iterations=40, resume="x"), tmp_path / "run")
    assert "small layers" in store.load(store.latest_intact_checkpoint(tmp_path / "run")).execution_reason


def test_a_run_repeats_to_the_bit_and_another_seed_differs(tmp_path: Path) -> None:
    for name, seed in [("one", 0), ("two", 0), ("three", 1)]:
        run(small(tmp_path, seed=seed), tmp_path / name)
    torch.testing.assert_close(tensors(tmp_path / "one"), tensors(tmp_path / "two"), rtol=0, atol=0)
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    assert lines(tmp_path / "one") != lines(tmp_path / "three")


HOLDER = """
import sys, time
from pathlib import Path
from typing import Any
from metarun.utils.run_dir_lock import exclusive_run_dir

with exclusive_run_dir(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("content", [None, {}, {"settings": {"dataset": {}, "backbone": {}, "method": {}}}])
@pytest.mark.parametrize("typed", ["mode=evaluate checkpoint=made", "mode=predict checkpoint=made"])
def test_a_checkpoint_without_settings_is_told(alone: None, capsys, monkeypatch, typed: str, content: object) -> None:
    Path("made").write_bytes(file_format.encode(content, {}))
    words = ["metarun", *typed.split(), "support=a", "query=b"]
    monkeypatch.setattr(sys, "argv", words if "predict" in typed else words[:3])
    assert app.main() == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "checkpoint made: it is not one that this version" in told


def test_two_processes_cannot_write_to_one_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="run: another process is writing to this run folder"):
            run(small(tmp_path), folder)
        assert [path.name for path in folder.iterdir()] == [".lock"]
        process.kill()
    run(small(tmp_path), folder)  # the lock died with its process
    assert (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [("val", "no validation was finite"), ("test", "mse of test tasks is not finite before the first inner step")],
)
def test_an_evaluation_without_a_finite_step_is_no_result(
    split: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, nothing = TaskParallelGroup.evaluate, torch.full((10, 4), math.nan, dtype=torch.float64)

    def diverged(team: TaskParallelGroup, of: str, *given: Any, **named: Any) -> EvalResult:
        found = evaluate(team, of, *given, **named)
        return EvalResult("mse", nothing, nothing, 2) if of == split else found

    monkeypatch.setattr(TaskParallelGroup, "evaluate", diverged)
    with pytest.raises(FloatingPointError, match=message):
        run(small(tmp_path), tmp_path / "run")
    told = [line["mse"] for line in lines(tmp_path / "run") if line["split"] == "val"]
    assert (told == [None, None]) == (split == "val") and not (tmp_path / "run" / "result.json").exists()


def test_the_first_order_phase_ends(tmp_path: Path) -> None:
    for name, steps in [("second", 0), ("first", 60), ("phase", 30)]:
        run(small(tmp_path, first_order_steps=steps), tmp_path / name)
    curves = {name: [line for line in lines(tmp_path / name) if line["split"] == "val"] for name in ("first", "phase")}
    assert curves["first"][0] == curves["phase"][0] and curves["first"][1] != curves["phase"][1]
    assert lines(tmp_path / "second") != lines(tmp_path / "phase")


def test_evaluate_judges_a_checkpoint_as_its_run_did(tmp_path: Path) -> None:
    run(small(tmp_path), tmp_path / "run")
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.safetensors"):
        assert run(small(tmp_path, mode="evaluate", checkpoint=str(place)), tmp_path / "evaluated") is None
        one, two = (json.loads((tmp_path / f / "result.json").read_text()) for f in ("run", "evaluated"))
        assert one["by_step"] == two["by_step"] and one["untrained"] == two["untrained"]


def test_evaluate_refuses_another_architecture(tmp_path: Path) -> None:
    run(small(tmp_path), tmp_path / "run")
    other = small(tmp_path, mode="evaluate", checkpoint=str(tmp_path / "run"), backbone=Mlp(hidden=[9]))
    with pytest.raises(UserError, match=r"of another architecture: layers.0.weight is \[8, 1\] instead of \[9, 1\]"):
        run(other, tmp_path / "evaluated")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"outer step \d+, training tasks \d+ to \d+: the loss is"):
        run(small(tmp_path, inner_learning_rate=1e9), tmp_path / "run")


def test_the_outer_clip_bounds_each_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam) -> None:
        seen.append(max(float(p.grad.abs().max()) for group in self.param_groups for p in group["params"]))
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    run(small(tmp_path, iterations=2), tmp_path / "free")
    run(small(tmp_path, iterations=2, outer_clip=1e-3), tmp_path / "clipped")
    assert min(seen[:2]) > 1e-3 and max(seen[2:]) == pytest.approx(1e-3)


def test_the_engines_choices_compute_the_same(tmp_path: Path) -> None:
    for tasks in ("vectorised", "looped"):
        run(small(tmp_path, iterations=20, engine=Engine(tasks=tasks)), tmp_path / tasks)
        run(small(tmp_path, iterations=20, engine=Engine(tasks, "mixed", segment=2)), tmp_path / f"{tasks}-mixed")
    for other in ("vectorised", "looped-mixed", "vectorised-mixed"):
        torch.testing.assert_close(tensors(tmp_path / "looped"), tensors(tmp_path / other), rtol=1e-4, atol=1e-5)
    assert store.load(store.latest_intact_checkpoint(tmp_path / "looped-mixed")).execution["meta_gradient"] == "mixed"


def test_cuda_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device=cuda:99: this machine has \d+ CUDA devices"):
        build_context(small(tmp_path, device="cuda:99"))


def test_cosine_falls_to_its_end() -> None:
    settings = Settings(outer_schedule="cosine", iterations=100, outer_learning_rate=0.1)
    assert trainer.learning_rate(settings, 0) == 0.1
    assert trainer.learning_rate(settings, 50) == pytest.approx(0.05)
    assert trainer.learning_rate(settings, 100) == pytest.approx(0.0)
    settings.outer_learning_rate_end = 0.02
    assert trainer.learning_rate(settings, 0) == 0.1
    assert trainer.learning_rate(settings, 50) == pytest.approx(0.06)
    assert trainer.learning_rate(settings, 100) == pytest.approx(0.02)


def test_the_interval_is_that_of_the_mean_over_tasks() -> None:
    values = torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.2, 0.5], [0.1, 0.5]], dtype=torch.float64)
    found = EvalResult("accuracy", values, values)
    assert found.by_step == pytest.approx([0.2, 0.5]) and found.mean == 0.5
    assert found.ci95 == pytest.approx(1.96 * (0.5 / 4) ** 0.5 / 2)
    assert str(found) == "accuracy 50.00 ± 34.65 %"
    assert found.better_than(0.4) and not found.better_than(0.5)
    assert EvalResult("mse", values, values).better_than(0.6)
