"""Runs through the runner: what they leave, that they repeat, resume, stop, and refuse."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun import checkpoint, cli, training
from metarun.errors import UserError
from metarun.evaluation import Evaluation
from metarun.groups import Maml, Mlp, Sinusoid
from metarun.interrupt import Stopped
from metarun.runner import run
from metarun.schema import Engine, Eval, Save, Settings
from metarun.work import build


def small(folder: Path, **changes: object) -> Settings:
    """A sinusoid run of a second."""
    settings = Settings(
        dataset=Sinusoid(),
        backbone=Mlp(hidden=[8]),
        method=Maml(),
        shots=5,
        queries=5,
        inner_loop=2,
        iterations=60,
        data_dir=str(folder / "data"),
        cache_dir=str(folder / "cache"),
        eval=Eval(tasks=10, validation_tasks=10, every=30, inner_loop=3, shots=4, queries=7),
        save=Save(every=20, keep=2),
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def lines(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    content = checkpoint.load(checkpoint.newest(folder))
    return {**content["theta"], **content["phi"]}


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
    assert names == ["best.pt", "step-00000040.pt", "step-00000060.pt"]
    assert any((folder / "tensorboard").iterdir())


def test_a_run_repeats_to_the_bit_and_another_seed_differs(tmp_path: Path) -> None:
    for name, seed in [("one", 0), ("two", 0), ("three", 1)]:
        run(small(tmp_path, seed=seed), tmp_path / name)
    torch.testing.assert_close(tensors(tmp_path / "one"), tensors(tmp_path / "two"), rtol=0, atol=0)
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    assert lines(tmp_path / "one") != lines(tmp_path / "three")


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("at", [20, 33, 59])
def test_a_stopped_run_resumes_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, schedule: str
) -> None:
    settings = small(tmp_path, outer_schedule=schedule)
    run(settings, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    outer_step = training.Training.outer_step

    def interrupted(self: training.Training) -> dict[str, float]:
        if self.step + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return outer_step(self)

    with (
        monkeypatch.context() as patch,
        pytest.raises(Stopped, match=f"SIGTERM: stopped after step {at}, .*resume=") as raised,
    ):
        patch.setattr(training.Training, "outer_step", interrupted)
        run(settings, stopped)
    assert raised.value.number == signal.SIGTERM
    assert not (stopped / "result.json").exists()
    run(replace(settings, resume=str(stopped)), stopped)
    assert lines(stopped) == lines(tmp_path / "whole")
    torch.testing.assert_close(tensors(stopped), tensors(tmp_path / "whole"), rtol=0, atol=0)
    whole, again = (json.loads((f / "result.json").read_text()) for f in (tmp_path / "whole", stopped))
    assert {**whole, "seconds": 0, "checkpoint": ""} == {**again, "seconds": 0, "checkpoint": ""}


def test_resuming_drops_what_a_killed_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    run(settings, tmp_path / "killed")
    checkpoint.step_path(tmp_path / "killed", 60).unlink()
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6')
    run(replace(settings, resume="x"), tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_a_run_stopped_in_a_validation_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    validate = training.Training.validate

    def interrupted(self: training.Training, *arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        validate(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(Stopped, match=r"in the validation of step 30, .* resume="):
        patch.setattr(training.Training, "validate", interrupted)
        run(settings, tmp_path / "stopped")
    assert [line["split"] for line in lines(tmp_path / "stopped")] == ["train"]
    run(replace(settings, resume="x"), tmp_path / "stopped")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def test_a_run_killed_behind_a_validation_does_not_write_it_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    save = training.Training.save

    def killed(self: training.Training) -> None:
        if self.step == 60 and not self.due:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "save", killed)
        run(settings, tmp_path / "killed")
    assert [line["step"] for line in lines(tmp_path / "killed") if line["split"] == "val"] == [30, 60]
    run(replace(settings, resume="x"), tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_goes_on(tmp_path: Path, caplog) -> None:
    settings = small(tmp_path)
    run(settings, tmp_path / "whole")
    run(settings, tmp_path / "damaged")
    path = checkpoint.step_path(tmp_path / "damaged", 60)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run(replace(settings, resume="x"), tmp_path / "damaged")
    assert "step-00000060.pt.damaged, and the one before it is used" in caplog.text
    assert lines(tmp_path / "damaged") == lines(tmp_path / "whole")
    torch.testing.assert_close(tensors(tmp_path / "damaged"), tensors(tmp_path / "whole"), rtol=0, atol=0)


HOLDER = """
import sys, time
from pathlib import Path
from metarun.runner import alone

with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("config", [None, {}, {"dataset": {}, "backbone": {}, "method": {}}])
@pytest.mark.parametrize("typed", ["mode=evaluate checkpoint=made.pt", "mode=predict checkpoint=made.pt"])
def test_a_checkpoint_without_settings_is_told(alone: None, capsys, monkeypatch, typed: str, config: object) -> None:
    checkpoint.save(Path("made.pt"), {"config": config})
    words = ["metarun", *typed.split(), "support=a", "query=b"]
    monkeypatch.setattr(sys, "argv", words if "predict" in typed else words[:3])
    assert cli.main() == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and ("made.pt: holds no settings" in told or "choose one of" in told)


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


def test_a_run_cannot_be_made_shorter_than_it_is(tmp_path: Path) -> None:
    run(small(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match="iterations=10: the run is at step 60 already"):
        run(small(tmp_path, iterations=10, resume="x"), tmp_path / "run")


def test_other_validation_tasks_begin_a_new_best(tmp_path: Path) -> None:
    run(small(tmp_path), tmp_path / "run")
    other = Eval(tasks=10, validation_tasks=10, every=30, inner_loop=0, shots=4, queries=7)
    found = run(small(tmp_path, resume="x", eval=other), tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["validation"] == {"step": 60, "mean": found, "ci95": result["validation"]["ci95"]}


def test_a_validation_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    diverging = Eval(tasks=10, validation_tasks=10, every=30, inner_loop=400)
    with pytest.raises(FloatingPointError, match="no validation was finite"):
        run(small(tmp_path, inner_learning_rate=0.5, inner_loop=1, eval=diverging), tmp_path / "run")
    assert [line["mse"] for line in lines(tmp_path / "run") if line["split"] == "val"] == [None, None]


def test_the_first_order_phase_ends(tmp_path: Path) -> None:
    for name, steps in [("second", 0), ("first", 60), ("phase", 30)]:
        run(small(tmp_path, first_order_steps=steps), tmp_path / name)
    curves = {name: [line for line in lines(tmp_path / name) if line["split"] == "val"] for name in ("first", "phase")}
    assert curves["first"][0] == curves["phase"][0] and curves["first"][1] != curves["phase"][1]
    assert lines(tmp_path / "second") != lines(tmp_path / "phase")


def test_evaluate_judges_a_checkpoint_as_its_run_did(tmp_path: Path) -> None:
    run(small(tmp_path), tmp_path / "run")
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.pt"):
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
        run(small(tmp_path, inner_learning_rate=1e30), tmp_path / "run")


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
    torch.testing.assert_close(tensors(tmp_path / "looped"), tensors(tmp_path / "vectorised"), rtol=1e-4, atol=1e-5)


def test_cuda_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device=cuda:99: this machine has \d+ CUDA devices"):
        build(small(tmp_path, device="cuda:99"))


def test_cosine_falls_to_zero() -> None:
    settings = Settings(outer_schedule="cosine", iterations=100, outer_learning_rate=0.1)
    assert training.learning_rate(settings, 0) == 0.1
    assert training.learning_rate(settings, 50) == pytest.approx(0.05)
    assert training.learning_rate(settings, 100) == pytest.approx(0.0)


def test_the_interval_is_that_of_the_mean_over_tasks() -> None:
    values = torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.2, 0.5], [0.1, 0.5]], dtype=torch.float64)
    found = Evaluation("accuracy", values, values)
    assert found.by_step == pytest.approx([0.2, 0.5]) and found.mean == 0.5
    assert found.ci95 == pytest.approx(1.96 * (0.5 / 4) ** 0.5 / 2)
    assert str(found) == "accuracy 50.00 ± 34.65 %"
    assert found.better_than(0.4) and not found.better_than(0.5)
    assert Evaluation("mse", values, values).better_than(0.6)
